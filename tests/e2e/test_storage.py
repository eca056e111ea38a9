"""A second disk on a running installation: added, everything moved to it over a killed worker, verified, repaired."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import MODEL, SOURCE, Stack
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(420), pytest.mark.xdist_group("e2e-storage")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("storage") / "home")
    try:
        made.up_with_demo()
        yield made
    finally:
        made.stop()


def store(stack: Stack, *words: str) -> str:
    done = subprocess.run(
        [str(SOURCE / "stokehold"), *words],
        env={**stack.environment(), "STOKEHOLD_HOME": str(stack.home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copies(stack: Stack) -> dict[str, Any]:
    version = stack.get("/model-versions/")["results"][0]
    return {row["location"]: row for row in stack.get(f"/model-versions/{version['id']}/copies/")["results"]}


def test_everything_is_moved_to_a_new_disk_and_mended_there(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    store(stack, "store", "add", "big", str(tmp_path / "disk"), "--default")
    store(stack, "store", "copy", f"{MODEL}:q4_1", "big", "--no-wait")
    worker = stack.pid("worker")
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: copies(stack).get("big", {}).get("state") == "whole", within_s=90, what="the copy")
    assert "done" in store(stack, "store", "move", "default", "big")
    assert set(copies(stack)) == {"big"}
    assert not list((stack.home / "models" / "blobs" / "sha256").glob("*/*"))
    blob = max((tmp_path / "disk" / "blobs").rglob("*"), key=lambda path: path.stat().st_size)
    store(stack, "store", "copy", f"{MODEL}:q4_1", "default")
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(10_000_000)
        file.write(b"\xff" * 16)
    assert "done" in store(stack, "store", "verify", f"{MODEL}:q4_1")
    assert "as it should be" in store(stack, "verify_store")
    assert {row["state"] for row in copies(stack).values()} == {"whole"}
