"""Versions that travel without a network: a folder, or an uncompressed tar, with a manifest beside the files.

    stokehold-manifest.json      `manifest.ArchiveManifest`
    files/<path>                 the files under their own names

`manifest` what it says, `tar_index` reads a tar from anywhere (hostile ones too), `tar_plan` lays one out,
`reading` takes an archive in, `services` writes one.
"""
