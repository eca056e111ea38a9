"""`./stokehold` itself: finding Python, installing by the lock, and doing so again only when needed.

A recorder stands for uv; the script, its bootstrap and the environment are the real ones.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]
_UV = """#!/bin/sh
echo "$@" >> "$UV_CALLS"
[ -z "${UV_SAYS-}" ] || { echo "$UV_SAYS"; exit 1; }
"""


class Tree:
    """A folder with the launcher, and a recorder on PATH as `uv`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a tree"
        (self.root / "config" / "launcher").mkdir(parents=True)
        shutil.copy(SOURCE / "stokehold", self.root / "stokehold")
        shutil.copy(SOURCE / "config" / "launcher" / "bootstrap.py", self.root / "config" / "launcher")
        (self.root / "manage.py").write_text("import sys, os; print('manage', *sys.argv[1:], os.getcwd())")
        for name in ("requirements", "requirements-dev", "requirements-demo"):
            (self.root / f"{name}.txt").write_text(f"{name}==1\n")
        self._bin = folder / "bin"
        self._bin.mkdir()
        (self._bin / "uv").write_text(_UV)
        (self._bin / "uv").chmod(0o755)
        self._calls = folder / "calls"

    def run(
        self, *arguments: str, says: str = "", cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self._bin), os.environ["PATH"]])
        return subprocess.run(
            [str(self.root / "stokehold"), *arguments],
            cwd=cwd or self.root.parent,
            env={**os.environ, "PATH": path, "UV_CALLS": str(self._calls), "UV_SAYS": says, **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_lock_is_installed_with_hashes_and_once(tree: Tree) -> None:
    assert tree.run("check").stdout.startswith("manage check")
    assert tree.run("check").returncode == 0
    assert len(tree.calls()) == 1
    assert "--require-hashes -r" in tree.calls()[0]


def test_a_changed_lock_is_installed_again(tree: Tree) -> None:
    tree.run("check")
    (tree.root / "requirements.txt").write_text("requirements==2\n")
    tree.run("check")
    assert len(tree.calls()) == 2


def test_anything_is_a_command_of_manage_in_the_callers_folder(tree: Tree, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    assert tree.run("import_model", "a b", cwd=elsewhere).stdout.strip() == f"manage import_model a b {elsewhere}"


def test_it_works_through_symlinks(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to("a tree/stokehold")
    (tmp_path / "second").symlink_to(tmp_path / "first")
    tree.run("check")
    done = subprocess.run([tmp_path / "second", "check"], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("manage check")


def test_an_interrupted_install_is_made_anew(tree: Tree) -> None:
    tree.run("check")
    (tree.root / ".venv" / "half written").touch()
    (tree.root / ".venv" / "installing").touch()
    done = tree.run("check")
    assert "interrupted" in done.stderr
    assert not (tree.root / ".venv" / "half written").exists()
    assert done.returncode == 0


def test_an_environment_whose_python_is_gone_is_made_anew(tree: Tree) -> None:
    tree.run("check")
    python = tree.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert tree.run("check").returncode == 0


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("error: dns error: failed to lookup address", "the package index cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "does not match its locked hash"),
        ("something else", "installing failed (something else)"),
    ],
)
def test_a_failed_install_is_one_sentence_and_is_tried_again(tree: Tree, says: str, sentence: str) -> None:
    failed = tree.run("check", says=says)
    assert failed.returncode == 1
    assert sentence in failed.stderr.splitlines()[-1]
    assert tree.run("check").returncode == 0


def test_no_python_is_one_sentence(tree: Tree, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for tool in ("sh", "dirname", "readlink", "cmp"):
        (bare / tool).symlink_to(shutil.which(tool) or "")
    done = tree.run("check", PATH=str(bare))
    assert done.returncode == 1
    assert done.stderr.startswith("stokehold: no Python 3.11 or newer was found: install one")
