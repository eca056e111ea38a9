"""The content-addressed store on a real file system."""

import fcntl
import os
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from models_registry.errors import BadSource, NoSpace
from models_registry.store import Store
from tests.models_registry.factories import files_below
from wire.manifest import Manifest


def make_folder(path: Path, **contents: str) -> Path:
    path.mkdir(parents=True)
    for name, text in contents.items():
        (path / name).write_text(text)
    return path


def take_in(store: Store, source: Path, **more) -> Manifest:
    with store.stage(source, **more) as staged, store.lock():
        store.publish(staged)
    return staged.manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_version_is_a_checkout_of_hard_links_to_blobs(store, tmp_path):
    manifest = take_in(store, make_folder(tmp_path / "m", a="one", b="two"))
    for file in manifest.files:
        blob = store.blob_path(file.sha256)
        assert blob.parent.name == file.sha256[:2]
        assert (store.version_path(manifest.digest) / file.path).samefile(blob)
        assert blob.stat().st_mode & 0o222 == 0
    assert not list((store.root / "staging").iterdir())


def test_equal_files_are_kept_once(store, tmp_path):
    first = take_in(store, make_folder(tmp_path / "m", a="same", b="same"))
    second = take_in(store, make_folder(tmp_path / "n", c="same"))
    assert first.digest != second.digest
    assert len(list((store.root / "blobs").rglob("*/*/*"))) == 1
    assert store.verify(first) == store.verify(second) == []


def test_a_single_file_keeps_its_name(store, tmp_path):
    folder = make_folder(tmp_path / "m", weights="data")
    assert [file.path for file in take_in(store, folder / "weights").files] == ["weights"]


def test_with_link_nothing_is_copied(store, tmp_path):
    folder = make_folder(tmp_path / "m", a="linked")
    manifest = take_in(store, folder, link=True)
    assert store.blob_path(manifest.files[0].sha256).samefile(folder / "a")


def test_progress_ends_at_one(store, tmp_path):
    folder = make_folder(tmp_path / "m", a="x" * 3_000_000, b="y")
    shares: list[float] = []
    with store.stage(folder, progress=shares.append):
        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert shares == sorted(shares)
        assert len(shares) > 3


def test_leavings_of_download_tools_are_left_out(store, tmp_path):
    folder = make_folder(tmp_path / "m", a="1")
    make_folder(folder / ".cache", junk="2")
    make_folder(folder / ".git", junk="3")
    assert [file.path for file in take_in(store, folder).files] == ["a"]


def test_a_link_inside_the_folder_counts_as_its_file(store, tmp_path):
    folder = make_folder(tmp_path / "m", a="1")
    (folder / "b").symlink_to("a")
    manifest = take_in(store, folder)
    assert [file.path for file in manifest.files] == ["a", "b"]
    assert not (store.version_path(manifest.digest) / "b").is_symlink()


def _link_out(folder: Path) -> None:
    (folder / "out").symlink_to("/etc/hostname")


def _link_to_folder(folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent)


def _broken_link(folder: Path) -> None:
    (folder / "out").symlink_to("nowhere")


def _circle(folder: Path) -> None:
    (folder / "x").symlink_to("y")
    (folder / "y").symlink_to("x")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _control_character(folder: Path) -> None:
    (folder / "a\nb").write_text("1")


def _not_unicode(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("1")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_link_out, "link that leaves"),
        (_link_to_folder, "link to a folder"),
        (_broken_link, "does not exist"),
        (_circle, "cannot be read|does not exist"),
        (_pipe, "no regular file"),
        (_control_character, "not safe"),
        (_not_unicode, "not safe"),
    ],
)
def test_a_folder_with_something_odd_is_refused_and_leaves_nothing(store, tmp_path, spoil, words):
    folder = make_folder(tmp_path / "m", a="1")
    spoil(folder)
    with pytest.raises(BadSource, match=words) as caught, store.stage(folder):
        pass
    assert caught.value.remedy
    assert files_below(store.root) == set()


def test_an_empty_folder_and_a_missing_path_are_refused(store, tmp_path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(BadSource, match="holds no files"), store.stage(tmp_path / "empty"):
        pass
    with pytest.raises(BadSource, match="does not exist"), store.stage(tmp_path / "nothing"):
        pass


def test_without_disk_space_nothing_is_started(store, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "m", a="x" * 5000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("models_registry.store.shutil.disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(NoSpace, match=r"but only 0\.00 GB are free") as caught, store.stage(folder):
        pass
    assert caught.value.message.count(". ") == 0
    assert files_below(store.root) == set()
    with store.stage(folder, link=True) as staged:  # takes no space
        assert staged.manifest.size_bytes == 5000


def test_a_file_that_grows_while_it_is_read_is_refused(store, tmp_path):
    folder = make_folder(tmp_path / "m", a="x" * 10, b="y" * 10)

    def grow(share: float) -> None:
        with (folder / "b").open("a") as file:
            file.write("more")

    with pytest.raises(BadSource, match="b changed while it was read"), store.stage(folder, progress=grow):
        pass
    assert files_below(store.root) == set()


def test_leftovers_of_a_killed_import_go_with_the_next_one(store, tmp_path):
    left = store.root / "staging" / "dead" / "files"
    left.mkdir(parents=True)
    (left / "half").write_text("1")
    (left.parent / ".lock").touch()
    take_in(store, make_folder(tmp_path / "m", a="1"))
    assert not left.exists()


def test_an_import_under_way_elsewhere_is_left_alone(store, tmp_path):
    alive = store.root / "staging" / "alive"
    alive.mkdir(parents=True)
    with (alive / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        take_in(store, make_folder(tmp_path / "m", a="1"))
        assert alive.exists()
    store.clean_leftovers()
    assert not alive.exists()


def test_only_what_no_version_needs_is_deleted(store, tmp_path):
    kept = take_in(store, make_folder(tmp_path / "m", a="shared", b="kept"))
    gone = take_in(store, make_folder(tmp_path / "n", a="shared", c="gone"))
    with store.lock():
        freed_bytes = store.delete_unreferenced({kept.digest})
    assert freed_bytes == len("gone")
    assert store.verify(kept) == []
    assert not store.version_path(gone.digest).exists()


def test_verify_names_what_was_altered_or_lost(store, tmp_path):
    manifest = take_in(store, make_folder(tmp_path / "m", a="one", b="two", c="three"))
    blobs = {file.path: store.blob_path(file.sha256) for file in manifest.files}
    blobs["a"].chmod(0o644)
    blobs["a"].write_text("eno")
    blobs["b"].unlink()
    assert store.verify(manifest) == ["a", "b"]


def test_imports_of_the_same_files_at_once_end_in_one_version(store, tmp_path):
    folder = make_folder(tmp_path / "m", a="x" * 200_000, b="y")
    ready = threading.Barrier(4)
    digests: list[str] = []

    def run() -> None:
        ready.wait(10)
        for _ in range(10):
            digests.append(take_in(store, folder).digest)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(digests) == 40
    assert len(set(digests)) == 1
    assert sorted(path.name for path in (store.root / "versions").iterdir()) == [digests[0]]
    assert not list((store.root / "staging").iterdir())


def test_an_upload_keeps_a_safe_name_only(store, tmp_path):
    for name in ("../x", "a/b", "", "a\0b", ".."):
        (tmp_path / "up").write_text("1")
        with pytest.raises(BadSource, match="not safe"):
            store.keep_upload(tmp_path / "up", name)
    kept = store.keep_upload(tmp_path / "up", "m.gguf")
    assert kept.read_text() == "1"
    store.drop_upload(kept)
    assert not kept.parent.exists()
    outside = make_folder(tmp_path / "m", a="1") / "a"
    store.drop_upload(outside)
    assert outside.exists()


def test_a_version_whose_removal_was_killed_comes_again_whole(store, tmp_path, monkeypatch):
    source = make_folder(tmp_path / "m", a="one", b="two")
    manifest = take_in(store, source)

    def killed(folder, **more):
        """After the first file."""
        next(path for path in sorted(Path(folder).rglob("*")) if path.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("models_registry.store.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt), store.lock():
        store.delete_unreferenced([])
    monkeypatch.undo()
    assert take_in(store, source) == manifest
    assert store.verify(manifest) == []
