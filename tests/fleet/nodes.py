"""A node for tests: its keys, its join, and its link, over real sockets and TLS."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.factories import make_facts, make_load
from wire import certs, join, messages, tokens
from wire.feed import GATEWAY_LINK_PATH, GatewayHello, decode_feed
from wire.messages import Hello, JoinReply, JoinRequest, Metrics, Observed

MASTER_NAME = "master.stokehold.internal"


def make_join_request(token: str, name: str = "srv-a", role: str = "agent", **fields: Any) -> JoinRequest:
    """A request of a node with keys of its own."""
    return make_node(token, name, role, **fields)[0]


def make_node(token: str, name: str = "srv-a", role: str = "agent", **fields: Any) -> tuple[JoinRequest, join.NodeKeys]:
    keys = join.make_keys()
    values: dict[str, Any] = {
        "token": token,
        "name": name,
        "public_key_pem": keys.signing_public_pem,
        "tls_public_key_pem": keys.tls_public_pem,
        "role": role,
        "addresses": ("10.1.2.3", "node.example.org"),
    }
    return JoinRequest(**(values | fields)), keys


class Node:
    """A joined node."""

    def __init__(self, reply: JoinReply, keys: join.NodeKeys, link_url: str, role: str = "agent") -> None:
        self.id = reply.node_id
        self.role = role
        self.link_url = link_url
        self.reply = reply
        self.keys = keys
        self.master_key = certs.load_verify_key(reply.signing_public_key_pem)
        self.tls = ssl.create_default_context(cadata=reply.ca_pem)

    def bearer(self, now: float | None = None) -> str:
        key = certs.load_signing_key(self.keys.signing_key_pem)
        return tokens.make_node_token(key, self.id, time.time() if now is None else now)

    @contextlib.asynccontextmanager
    async def link(self, *, hello: bool = True, bearer: str | None = None) -> AsyncIterator[Link]:
        """Its link, greeted."""
        headers = {"Authorization": f"Bearer {bearer or self.bearer()}"}
        path = messages.AGENT_LINK_PATH if self.role == "agent" else GATEWAY_LINK_PATH
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                self.link_url + path, headers=headers, ssl=self.tls, server_hostname=MASTER_NAME, max_msg_size=0
            ) as socket,
        ):
            link = Link(socket)
            if hello and self.role == "agent":
                await link.send(make_hello())
            elif hello:
                await link.send(GatewayHello(host_id="host-gw", base_url="http://gw:8080"))
            yield link


class Link:
    """Messages of one open link."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        await self.socket.send_str(messages.encode(message))

    async def next(self, within_s: float = 5.0) -> Any:
        """The next message."""
        frame = await self.socket.receive(within_s)
        assert frame.type is aiohttp.WSMsgType.TEXT, frame
        for decode in (messages.decode_from_master, decode_feed):
            with contextlib.suppress(Exception):
                return decode(frame.data)
        raise AssertionError(f"not understood: {frame.data!r}")

    async def next_of(self, kind: type, within_s: float = 5.0) -> Any:
        """The next message of a kind; others are passed over."""
        deadline = time.monotonic() + within_s
        while True:
            message = await self.next(max(0.01, deadline - time.monotonic()))
            if isinstance(message, kind):
                return message

    async def closed(self, within_s: float = 5.0) -> int | None:
        """Waits for the close; its code."""
        frame = await self.socket.receive(within_s)
        assert frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING), frame
        return self.socket.close_code


def make_hello(**fields: Any) -> Hello:
    return Hello(**({"facts": make_facts(), "generation": 0} | fields))


def make_observed(generation: int = 0, **fields: Any) -> Observed:
    return Observed(**({"generation": generation, "instances": ()} | fields))


def make_metrics(**fields: Any) -> Metrics:
    return Metrics(at=time.time(), load=make_load(**fields))
