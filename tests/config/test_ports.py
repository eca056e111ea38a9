"""Which port serves what, with a real master."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import pytest
import requests

from tests.fleet.nodes import MASTER_NAME
from tests.master import Master

pytestmark = pytest.mark.django_db(transaction=True)


def fetch(master: Master, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, str, str]:
    """(status, content type, body) from the link port, verified as nodes do."""

    async def scenario() -> tuple[int, str, str]:
        tls = ssl.create_default_context(cafile=str(master.home.ca / "ca.pem"))
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, master.link_url + path, data=body or None, ssl=tls, server_hostname=MASTER_NAME
            ) as response,
        ):
            return response.status, response.content_type, await response.text()

    return asyncio.run(scenario())


def test_the_link_port_gives_the_ca_to_nodes(master: Master) -> None:
    status, kind, text = fetch(master, "/api/v1/join/ca")
    assert (status, kind) == (200, "application/x-pem-file")
    assert text == (master.home.ca / "ca.pem").read_text()


@pytest.mark.parametrize("path", ["/admin/login/", "/api/v1/servers/", "/healthz", "/", "/api/v1/auth/token"])
def test_the_link_port_serves_nothing_for_people(master: Master, path: str) -> None:
    status, kind, _ = fetch(master, path)
    assert (status, kind) == (404, "application/problem+json")


@pytest.mark.parametrize("path", ["/api/v1/join", "/api/v1/join/ca", "/api/v1/blobs/" + "0" * 64])
def test_the_plain_port_serves_nothing_for_nodes(master: Master, path: str) -> None:
    answer = requests.get(master.url + path, headers={"X-Forwarded-Proto": "https"}, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (421, "link_port_only")
    assert master.link_url in answer.json()["detail"]


def _handshake(url: str, **options: object) -> int:
    async def scenario() -> int:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.ws_connect(url, **options):
                    return 101
            except aiohttp.WSServerHandshakeError as error:
                return error.status

    return asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/link/agent", "/link/gateway", "/ws/nowhere"])
def test_the_plain_port_opens_no_link(master: Master, path: str) -> None:
    assert _handshake(master.url + path) == 403


def test_live_pages_open_from_our_own_origin_only(master: Master) -> None:
    assert _handshake(f"{master.url}/ws/live", headers={"Origin": "https://evil.example.org"}) == 403


def test_a_join_that_is_too_large_is_refused(master: Master) -> None:
    status, _, text = fetch(master, "/api/v1/join", "POST", b"x" * 70_000)
    assert status == 413
    assert "body_too_large" in text


def test_a_join_that_is_no_json_is_refused(master: Master) -> None:
    status, kind, text = fetch(master, "/api/v1/join", "POST", b"{")
    assert (status, kind) == (400, "application/problem+json")
    assert "join_request_invalid" in text
