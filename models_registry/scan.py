"""Which files a file or folder on this machine has to take in: regular ones, with safe names, all inside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models_registry.errors import BadSource
from wire.errors import BadMessage
from wire.manifest import check_path

MOST_FILES = 20_000
"""Of one version, wherever it comes from."""
_SKIPPED_FOLDERS = frozenset({".cache", ".git"})  # of download tools, never part of a model
_SKIPPED_FILES = frozenset({".gitattributes", ".gitignore", ".DS_Store"})
_SECRETS = {".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".netrc", ".pgpass", ".git-credentials"}


@dataclass(frozen=True)
class SourceFile:
    """A regular file to take in. `path` is relative to the version's folder."""

    path: str
    source: Path
    size_bytes: int


def scan(source: Path, protected: Sequence[Path] = ()) -> tuple[SourceFile, ...]:
    """Regular files of a file or folder, sorted by path.

    Hidden leavings of download tools (`.cache`, `.git`) are left out. A link to a file inside the folder counts as
    that file. Raises BadSource: nothing there, empty, unreadable, a special file, an unsafe name, a link that leaves,
    a file in one of the `protected` (resolved) paths.
    """
    try:
        root = source.resolve(strict=True)
        if root.is_file():
            files = [_checked_file(root, root.parent, source.name)]
        elif root.is_dir():
            files = sorted(_walk(root), key=lambda file: file.path)
        else:
            raise BadSource(f"{source} is neither a file nor a folder.")
    except FileNotFoundError as error:
        raise BadSource(f"{error.filename or source} does not exist on the master's machine.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise BadSource(f"{source} cannot be read: {error}.") from error
    if not files:
        raise BadSource(f"The folder {source} holds no files.")
    for file in files:
        if keeps_secrets(file.source):
            raise BadSource(
                f"{file.path} lies where a person's keys are kept, and is no part of a model.",
                remedy="Give a folder that holds the model's files only.",
            )
        if any(file.source.is_relative_to(own) for own in protected):
            raise BadSource(
                f"{file.path} is part of this installation's own home folder.",
                remedy="Give a folder that holds the model's files only.",
            )
    return tuple(files)


def keeps_secrets(path: Path) -> bool:
    """Whether it lies where programs keep a person's keys and passwords."""
    return not _SECRETS.isdisjoint(path.parts)


def _walk(root: Path) -> Iterator[SourceFile]:
    def fail(error: OSError) -> None:
        raise error

    count = 0
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise BadSource(
                    f"{Path(folder) / name} is a link to a folder.", remedy="Copy it whole first: cp -rL FOLDER COPY"
                )
        for name in names:
            if name in _SKIPPED_FILES:
                continue
            count += 1
            if count > MOST_FILES:
                raise BadSource(f"{root} holds more than {MOST_FILES} files: is this a model's folder?")
            path = Path(folder) / name
            yield _checked_file(path, root, path.relative_to(root).as_posix())


def _checked_file(path: Path, root: Path, relative: str) -> SourceFile:
    try:
        check_path(relative)
        relative.encode()
    except (BadMessage, UnicodeEncodeError) as error:
        raise BadSource(
            f"The file name {relative!r} is not safe.", remedy="Rename the file, then try again."
        ) from error
    real = path.resolve(strict=True)
    if not real.is_relative_to(root):
        raise BadSource(
            f"{relative} is a link that leaves the folder.", remedy="Copy it whole first: cp -rL FOLDER COPY"
        )
    status = real.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadSource(f"{relative} is no regular file.", remedy="Remove it from the folder, then try again.")
    return SourceFile(path=relative, source=real, size_bytes=status.st_size)
