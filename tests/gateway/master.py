"""A master as a gateway sees it: TLS with a real CA, join, and the gateway link."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import secrets
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from gateway.home import Home
from wire import certs, join
from wire.feed import (
    ENDPOINT_GROUPS,
    FeedDelta,
    FeedKey,
    FeedProject,
    FeedRoute,
    FeedSnapshot,
    GatewayHello,
    GatewayStatus,
    Limits,
    Target,
    UsageAck,
    UsageBatch,
    UsageRow,
    decode_from_gateway,
)
from wire.messages import JOIN_CA_PATH, JOIN_PATH, JoinReply, JoinRequest, Refused, Welcome, encode
from wire.tokens import JoinToken, claimed_node, verify_node_token

NOW = dt.datetime.now(dt.UTC)
PEPPER = "5a" * 32
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def make_secret() -> tuple[str, str]:
    """(key id, whole key)"""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    return key_id, f"sk-stk-{key_id}-{''.join(secrets.choice(_ALPHABET) for _ in range(43))}"


def make_feed_key(**changes: Any) -> tuple[FeedKey, str]:
    """A key and its whole text."""
    key_id, text = make_secret()
    digest = hmac.new(bytes.fromhex(PEPPER), text.encode(), hashlib.sha256).hexdigest()
    values: dict[str, Any] = {
        "id": key_id,
        "secret_hash": digest,
        "project_id": "p1",
        "name": "test",
        "active": True,
        "expires_at": None,
        "models": None,
    }
    return FeedKey(**{**values, **changes}), text


def make_project(**changes: Any) -> FeedProject:
    values: dict[str, Any] = {"id": "p1", "name": "project", "active": True, "limits": Limits()}
    return FeedProject(**{**values, **changes})


def make_target(port: int, host_id: str, **changes: Any) -> Target:
    values: dict[str, Any] = {
        "instance_id": f"i-{port}",
        "server_id": "s1",
        "host_id": host_id,
        "port": port,
        "relay_addresses": (),
        "relay_port": 0,
        "engine_model": "engine-model",
    }
    return Target(**{**values, **changes})


def make_route(name: str, *targets: Target, **changes: Any) -> FeedRoute:
    values: dict[str, Any] = {"id": name, "created": 1_700_000_000, "targets": targets, "endpoints": ENDPOINT_GROUPS}
    return FeedRoute(**{**values, **changes})


class FakeMaster:
    """Keeps what gateways told it; `snapshot` is what they are told."""

    def __init__(self) -> None:
        self.ca_key, self.ca_pem = certs.make_ca("test CA", NOW)
        self.token = JoinToken("abcd1234", secrets.token_hex(20), certs.fingerprint(self.ca_pem))
        self.signing = certs.make_signing_key()
        self.nodes: dict[str, str] = {}
        self.snapshot = FeedSnapshot(pepper=PEPPER, projects=(), keys=(), routes=())
        self.hellos: list[GatewayHello] = []
        self.statuses: list[GatewayStatus] = []
        self.batches: dict[str, UsageBatch] = {}
        self.received: list[UsageBatch] = []
        self.acknowledges = True
        self.refuse: Refused | None = None
        self.port = 0
        self._sockets: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def rows(self) -> list[UsageRow]:
        return [row for batch in self.batches.values() for row in batch.rows]

    def join(self, home: Home) -> join.NodeIdentity:
        """Put an identity into a home, as the join would."""
        keys = join.make_keys()
        reply = self._admit(keys.signing_public_pem, keys.tls_public_pem)
        identity = join.make_identity(keys, reply, role="gateway", master_url=self.url)
        home.save_identity(identity)
        return identity

    def _admit(self, signing_public_pem: str, tls_public_pem: str) -> JoinReply:
        node_id = secrets.token_hex(8)
        self.nodes[node_id] = signing_public_pem
        certificate = certs.issue(
            self.ca_key, self.ca_pem, tls_public_pem, common_name=node_id, role="gateway", names=("gw.test",), now=NOW
        )
        return JoinReply(
            node_id=node_id,
            name="gw",
            certificate_pem=certificate,
            ca_pem=self.ca_pem,
            signing_public_key_pem=self.signing.public_pem,
        )

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/link/gateway", self._link)
        app.router.add_get(JOIN_CA_PATH, self._ca)
        app.router.add_post(JOIN_PATH, self._join)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._tls(), reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        for socket in list(self._sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def push(self, **delta: Any) -> None:
        """Send a delta to all, and keep it in the snapshot."""
        message = FeedDelta(**delta)
        snapshot = self.snapshot
        for name, gone in (("keys", "gone_keys"), ("projects", "gone_projects"), ("routes", "gone_routes")):
            items = {item.id: item for item in getattr(snapshot, name)}
            items |= {item.id: item for item in getattr(message, name)}
            for item_id in getattr(message, gone):
                items.pop(item_id, None)
            snapshot = msgspec.structs.replace(snapshot, **{name: tuple(items.values())})
        self.snapshot = snapshot
        for socket in self._sockets:
            await socket.send_str(encode(message))

    def _tls(self) -> ssl.SSLContext:
        return server_context(self.ca_key, self.ca_pem, ("master.stokehold.internal", "127.0.0.1"), role="master")

    async def _ca(self, request: web.Request) -> web.Response:
        return web.Response(text=self.ca_pem)

    async def _join(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=JoinRequest)
        if asked.token != str(self.token):
            problem = {"detail": "This join token is not known.", "remedy": "Make a new one."}
            return web.json_response(problem, status=403, content_type="application/problem+json")
        reply = self._admit(asked.public_key_pem, asked.tls_public_key_pem)
        return web.Response(status=201, body=msgspec.json.encode(reply), content_type="application/json")

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        bearer = request.headers["Authorization"].removeprefix("Bearer ")
        node_id = claimed_node(bearer)
        verify_node_token(certs.load_verify_key(self.nodes[node_id]), bearer, node_id)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.refuse is not None:
            await socket.send_str(encode(self.refuse))
            await socket.close()
            return socket
        await socket.send_str(encode(Welcome(node_id=node_id)))
        await socket.send_str(encode(self.snapshot))
        self._sockets.add(socket)
        try:
            async for frame in socket:
                if frame.type is aiohttp.WSMsgType.TEXT:
                    await self._take(socket, decode_from_gateway(frame.data))
        finally:
            self._sockets.discard(socket)
        return socket

    async def _take(self, socket: web.WebSocketResponse, message: GatewayHello | GatewayStatus | UsageBatch) -> None:
        if isinstance(message, GatewayHello):
            self.hellos.append(message)
        elif isinstance(message, GatewayStatus):
            self.statuses.append(message)
        else:
            self.received.append(message)
            if self.acknowledges:
                self.batches.setdefault(message.batch_id, message)
                await socket.send_str(encode(UsageAck(batch_id=message.batch_id)))


Context = TypeVar("Context", bound=ssl.SSLContext)


def server_context(
    ca_key: str,
    ca_pem: str,
    names: tuple[str, ...],
    *,
    role: str,
    kind: type[Context] = ssl.SSLContext,  # type: ignore[assignment]
) -> Context:
    """TLS server side with a certificate of this CA."""
    pair = certs.make_tls_key()
    certificate = certs.issue(ca_key, ca_pem, pair.public_pem, common_name=role, role=role, names=names, now=NOW)
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.pem"
        path.write_text(pair.private_pem + certificate)
        context.load_cert_chain(path)
    return context


@asynccontextmanager
async def running_master() -> AsyncIterator[FakeMaster]:
    master = FakeMaster()
    await master.start()
    try:
        yield master
    finally:
        await master.stop()


async def until(condition: Any, *, within_s: float = 5.0, what: str = "the condition") -> None:
    """Wait until `condition()` is true; fail after `within_s`."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what} did not come true within {within_s} s")
        await asyncio.sleep(0.01)
