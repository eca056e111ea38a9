"""A small Hub for tests, and other people's clients that ask it."""

from __future__ import annotations

import hashlib
import os
import subprocess

from huggingface_hub import HfApi

from tests.fakes.hub import FakeHub

CONFIG, README = b'{"model_type": "llama"}', "# Mödel\n".encode()
WEIGHTS = os.urandom(3_000_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
FILES = {
    "config.json": CONFIG,
    "README.md": README,
    "sub/model.safetensors": WEIGHTS,
    "sub/deeper/a file (1).txt": b"spaces\n",
}


def sample_hub() -> FakeHub:
    made = FakeHub(tokens={"hf_good": {"org/gated", "org/private"}, "hf_other": set()})
    made.repo("org/model", FILES, license="mit", downloads=7)
    made.repo("org/gated", FILES, gated="manual")
    made.repo("org/private", FILES, private=True)
    return made


def api(hub: FakeHub, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def address(hub: FakeHub, path: str = "sub/model.safetensors", repo: str = "org/model", revision: str = "main") -> str:
    return f"{hub.url}/{repo}/resolve/{revision}/{path}"


def curl(*arguments: str, status: str = "") -> bytes:
    """What curl writes to its output; it must end well."""
    command = ["curl", "-sS", "--max-time", "20", *arguments]
    if status:
        command += ["-o", os.devnull, "-w", "%{http_code}"]
    done = subprocess.run(command, capture_output=True, check=True)
    if status:
        assert done.stdout.decode() == status
    return done.stdout


def git_sha1(content: bytes) -> str:
    """By git itself."""
    done = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
    return done.stdout.decode().strip()
