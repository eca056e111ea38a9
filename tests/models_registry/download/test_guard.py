"""Which addresses files are fetched from, and that it is looked at when a connection is made."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from models_registry.download.downloader import running
from models_registry.download.guard import ForbiddenAddress, guarded_sockets, is_allowed
from models_registry.download.remote import Remote
from models_registry.download.transfer import Wanted
from models_registry.errors import SourceGone, SourceRefused
from tests.fakes.hub import FakeHub, Fault, HubFile, running_hub

CONTENT = b"x" * 5000


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "fd00:ec2::254"),
        *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255"),
    ],
)
def test_links_metadata_and_what_is_no_host_are_never_fetched_from(address: str) -> None:
    assert not is_allowed(address, loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_this_machine_only_where_it_is_allowed(address: str) -> None:
    assert not is_allowed(address, loopback=False)
    assert is_allowed(address, loopback=True)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "172.16.3.4", "8.8.8.8", "2606:4700::1", "fd12::1"])
def test_servers_of_ones_own_network_and_of_the_world_are_fine(address: str) -> None:
    assert is_allowed(address, loopback=False)


async def fetch(folder: Path, url: str, *, loopback: bool) -> None:
    async with running(2, loopback=loopback) as downloader:
        await downloader.fetch([Wanted(folder / "f", len(CONTENT), Remote(url, name="f"))])


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1"])
async def test_loopback_by_any_name_is_refused_at_the_connection(tmp_path: Path, host: str) -> None:
    hub = FakeHub()
    hub.repo("org/model", {"f": HubFile(CONTENT)})
    async with running_hub(hub):
        url = f"http://{host}:{hub.port}/org/model/resolve/main/f"
        with pytest.raises((SourceRefused, SourceGone)):  # the latter: numbers that aiohttp takes for no host
            await fetch(tmp_path, url, loopback=False)
        assert hub.asked == []


@pytest.mark.asyncio
async def test_a_redirect_to_a_forbidden_address_is_not_followed(tmp_path: Path) -> None:
    hub = FakeHub()
    hub.repo("org/model", {"f": HubFile(CONTENT)})
    hub.faults = [Fault("f", redirect_to="http://169.254.169.254/latest/meta-data/", times=-1)]
    async with running_hub(hub):
        with pytest.raises(SourceRefused, match=r"169\.254\.169\.254"):
            await fetch(tmp_path, f"{hub.url}/org/model/resolve/main/f", loopback=True)


@pytest.mark.asyncio
async def test_a_name_that_leads_to_both_is_fetched_from_the_allowed_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: what counts is the address that is connected to, not what was looked up before."""
    hub = FakeHub()
    hub.repo("org/model", {"f": HubFile(CONTENT)})
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def both(host: Any, port: Any, **options: Any) -> Any:
        if host != "model.example":
            return await real(host, port, **options)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("169.254.169.254", port)), (*kind, ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", both)
    async with running_hub(hub):
        url = f"http://model.example:{hub.port}/org/model/resolve/main/f"
        await fetch(tmp_path, url, loopback=True)
        assert (tmp_path / "f").read_bytes() == CONTENT
        with pytest.raises(SourceRefused):
            await fetch(tmp_path / "other", url, loopback=False)


def test_this_machine_by_its_address_in_the_network_is_refused_too() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine is in no network")
        own = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (probe.getsockname()[0], 80))
    with pytest.raises(ForbiddenAddress):
        guarded_sockets(loopback=False)(own)
    guarded_sockets(loopback=True)(own).close()
    guarded_sockets(loopback=False)((*own[:4], ("198.51.100.1", 80))).close()
