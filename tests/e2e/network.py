"""Another machine, as far as the network can tell: a namespace at the other end of a cable that can be cut."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A network namespace. `here` is this side's address, `there` the other's."""

    name: str
    here: str
    there: str

    def command(self, *arguments: str) -> list[str]:
        """`arguments`, run over there."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def cut(self) -> None:
        """Unplug the cable: packets are lost, nobody is told."""
        _ip("link", "set", _cable(self.name), "down")

    def mend(self) -> None:
        _ip("link", "set", _cable(self.name), "up")


@contextmanager
def another_machine() -> Iterator[Machine]:
    """Needs root, as making a network does."""
    name = f"sth{uuid.uuid4().hex[:6]}"
    third = int(name[3:5], 16)
    machine = Machine(name, here=f"10.213.{third}.1", there=f"10.213.{third}.2")
    cable = _cable(name)
    _ip("netns", "add", name)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"{machine.here}/24", "dev", cable)
        _ip("link", "set", cable, "up")
        for arguments in (
            ("address", "add", f"{machine.there}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *arguments)
        yield machine
    finally:
        _ip("netns", "delete", name)


def _cable(name: str) -> str:
    return f"v{name}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
