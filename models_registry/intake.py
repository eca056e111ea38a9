"""What lies at a path of this machine, taken into the staging folder: files as they are, or those of an archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models_registry.archive.reading import Archive, take
from models_registry.errors import InvalidName
from models_registry.sources import check_name
from models_registry.store import SPARE_BYTES, Progress, Staged, Store


def named(name: str | None, version: str | None, archive: Archive | None) -> tuple[str, str | None]:
    """Those given, else those of the archive. Raises InvalidName."""
    if archive is not None:
        name = archive.manifest.name if name is None else name
        version = archive.manifest.version if version is None else version
    if name is None:
        raise InvalidName("The model has no name.", remedy="Give one: only archives bring their own.")
    check_name(name, version)
    return name, version


@contextmanager
def staged_files(
    place: Store,
    path: Path,
    archive: Archive | None,
    *,
    link: bool,
    protected: Sequence[Path],
    progress: Progress | None,
) -> Iterator[Staged]:
    """The files of a path, or those in an archive; as `Store.stage` of `place`."""
    if archive is None:
        with place.stage(path, link=link, protected=protected, progress=progress) as staged:
            yield staged
        return
    note = progress or (lambda share: None)
    with place.stage_by(lambda folder: take(archive, folder, SPARE_BYTES, note)) as staged:
        yield staged
