"""Errors of the model registry: each has a stable `code`, an HTTP `status`, a message for a person, and a remedy."""

from __future__ import annotations

from wire.errors import Problem


class RegistryError(Problem):
    """A model could not be taken in, found or removed."""

    code = "registry_error"
    status = 400
    remedy = "Correct the request and send it again."


class BadSource(RegistryError):
    """The file or folder to import cannot be taken as it is."""

    code = "bad_source"
    remedy = "Give a readable file, or a folder with the model's files, on the master's machine."


class DamagedModel(RegistryError):
    """A model file's header contradicts the file."""

    code = "damaged_model"
    status = 422
    remedy = "Download the file again and compare its size and sha256 with the publisher's, then import it again."


class NoSpace(RegistryError):
    code = "no_space"
    status = 507
    remedy = "Free disk space, delete model versions that nothing uses, or import with --link on the same file system."


class InvalidName(RegistryError):
    code = "invalid_name"
    remedy = "Letters, digits, '.', '_' and '-' (in a model's name '/' too), first a letter or digit."


class VersionTaken(RegistryError):
    code = "version_taken"
    status = 409
    remedy = "Give another version, or none to have the next free number."


class VersionInUse(RegistryError):
    code = "version_in_use"
    status = 409
    remedy = "Delete these deployments, or move them to another model version first."


class InvalidAlias(RegistryError):
    code = "invalid_alias"
    remedy = "Letters, digits, '.', '_' and '-', at most 40, first a letter or digit, and not only digits."


class AliasInUse(RegistryError):
    code = "alias_in_use"
    status = 409
    remedy = "Delete these deployments, or let them follow another alias or a fixed version first."


class UnknownVersion(RegistryError):
    code = "unknown_version"
    status = 404
    remedy = "GET /api/v1/model-versions/ and /api/v1/model-aliases/ list what there is; `import_model` takes one in."


class InvalidTag(RegistryError):
    code = "invalid_tag"
    remedy = "Letters, digits, '.', '_', ':' and '-', at most 40 each, first a letter or digit, at most 20 tags."


class NothingToAllow(RegistryError):
    """The version needs no such permit."""

    code = "nothing_to_allow"
    status = 409
    remedy = "Nothing to do: it can be deployed without."


class NotReady(RegistryError):
    code = "version_not_ready"
    status = 409
    remedy = "Wait until the import is done, or import it again if it failed."


class SourceRefused(RegistryError):
    """The source does not let us have it."""

    code = "source_refused"
    status = 403
    remedy = "Accept the model's terms on its page, and give a token that may read it."


class SourceGone(RegistryError):
    code = "source_gone"
    status = 404
    remedy = "Look at the name and the revision: it may have been renamed, removed, or be private."


class SourceChanged(RegistryError):
    """The file is not the one that was there when the import began."""

    code = "source_changed"
    status = 409
    remedy = "Import it again; give a commit instead of a branch to be safe from changes."


class SourceUnreachable(RegistryError):
    code = "source_unreachable"
    status = 502
    remedy = "Look at the network between the master and the source, then import it again: it goes on where it was."


class WrongHash(RegistryError):
    """What the source sends is not what it says."""

    code = "wrong_hash"
    status = 422
    remedy = "Import it again later, or from another mirror; tell the publisher when it stays so."


class ImportCancelled(RegistryError):
    code = "import_cancelled"
    status = 409
    remedy = "Import it again: what was fetched is still there for a week."


class InvalidToken(RegistryError):
    code = "invalid_token"
    remedy = "Give a name, and the token as the Hub shows it (hf_...)."


class TokenNameTaken(InvalidToken):
    code = "token_name_taken"
    status = 409


class BadSchedule(RegistryError):
    """A bandwidth schedule that cannot be read."""

    code = "bad_schedule"
    remedy = "Write it as in: mon-fri 08:00-18:00 20 MB/s, 22:00-06:00 unlimited, else 50 MB/s"


class BadArchive(RegistryError):
    """A tar or folder that is no whole export of a model version."""

    code = "bad_archive"
    status = 422
    remedy = "Export the version again, copy the archive whole, then import it again. Nothing of it was taken in."


class ExportRefused(RegistryError):
    """An export cannot be written where it was asked for."""

    code = "export_refused"
    remedy = "Give a path that does not exist yet, in a folder that may be written, outside this installation's home."


class BadLocation(RegistryError):
    """A path that cannot be a storage location."""

    code = "bad_location"
    remedy = "Give an absolute path of a folder that is there, and that nothing else uses."


class LocationUnreachable(RegistryError):
    """Its disk is not there, or another one is in its place."""

    code = "location_unreachable"
    status = 503
    remedy = "Mount its disk, then look again. Nothing of it is lost, and nothing in it is touched meanwhile."


class LocationReadOnly(RegistryError):
    code = "location_read_only"
    status = 409
    remedy = "Choose another location, or make this one writable."


class LocationInUse(RegistryError):
    code = "location_in_use"
    status = 409
    remedy = "Move the versions in it elsewhere, or delete these copies, then remove it."


class QuotaExceeded(NoSpace):
    """More would lie in a location than its quota allows."""

    code = "quota_exceeded"
    remedy = "Raise the quota of the location, choose another one, or delete versions that nothing uses."


class LastCopy(RegistryError):
    code = "last_copy"
    status = 409
    remedy = "Copy it to another location first, or delete the version."


class StorageBusy(RegistryError):
    """Something is being done with this version's files."""

    code = "storage_busy"
    status = 409
    remedy = "Wait until it is done, or cancel it."


class AlreadyThere(RegistryError):
    code = "already_there"
    status = 409
    remedy = "Choose another location."


class CopyDamaged(RegistryError):
    """No whole source of a file is to be had."""

    code = "copy_damaged"
    status = 409
    remedy = "Verify the copies of this version, then import it again if they cannot be repaired."
