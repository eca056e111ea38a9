"""The master's end of an agent's link, for tests: real TLS, real CA, real signatures; state in memory."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec
from aiohttp import WSMsgType, web

from wire import certs
from wire.envelope import Envelope, seal
from wire.messages import (
    AGENT_LINK_PATH,
    BLOB_PATH,
    JOIN_CA_PATH,
    JOIN_PATH,
    AgentMessage,
    Cache,
    CachePolicy,
    Desired,
    DesiredState,
    HeldModel,
    Hello,
    InstanceSpec,
    JoinReply,
    JoinRequest,
    LogTail,
    MasterMessage,
    Metrics,
    Observed,
    ObservedInstance,
    Order,
    TailLogs,
    Welcome,
    decode_from_agent,
    encode,
)
from wire.pieces import PEERS_PATH, PIECE_BYTES, PIECES_PATH, Peer, PeersReply
from wire.tokens import JoinToken, claimed_node, verify_node_token

SERVER_ID = "srv-1"
SECRET = "s" * 43


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class TestMaster:
    """`async with TestMaster(folder) as master`; the port stays the same over `stop` and `start`."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca_key, self.ca_pem = certs.make_ca("test CA", utc_now())
        self.signing = certs.make_signing_key()
        self.signing_key = certs.load_signing_key(self.signing.private_pem)
        self.token = str(JoinToken("abcdefgh", SECRET, certs.fingerprint(self.ca_pem)))
        self.tokens_left = 1
        self.joins_asked = 0
        self.node_keys: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.blob_ranges: list[str] = []
        self.told_of: dict[str, bytes] = {}
        """What the hashes of pieces are made of, where that is not what is sent."""
        self.peers: tuple[Peer, ...] = ()
        self.neighbours: tuple[str, ...] = ()
        self.break_after_bytes: int | None = None
        self.hold_blobs = False
        self.blobs_given_up = 0
        self.received: list[AgentMessage] = []
        self.envelope: Envelope | None = None
        self.news = asyncio.Condition()
        self.port = 0
        self._sockets: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def issue(self, public_pem: str, *, role: str, names: tuple[str, ...] = ("localhost",)) -> str:
        return certs.issue(
            self.ca_key, self.ca_pem, public_pem, common_name=role, role=role, names=names, now=utc_now()
        )

    def client_context(self, role: str) -> ssl.SSLContext:
        """TLS client with a certificate of this CA in `role`."""
        keys = certs.make_tls_key()
        pem = self.folder / f"{role}.pem"
        pem.write_text(self.issue(keys.public_pem, role=role) + keys.private_pem)
        context = ssl.create_default_context(cadata=self.ca_pem)
        context.load_cert_chain(pem)
        return context

    async def __aenter__(self) -> TestMaster:
        await self.start()
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self) -> None:
        keys = certs.make_tls_key()
        pem = self.folder / "master.pem"
        pem.write_text(
            self.issue(keys.public_pem, role="master", names=("master.stokehold.internal",)) + keys.private_pem
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        app = web.Application()
        app.router.add_get(JOIN_CA_PATH, self._ca)
        app.router.add_post(JOIN_PATH, self._join)
        app.router.add_get(BLOB_PATH, self._blob)
        app.router.add_get(PIECES_PATH, self._pieces)
        app.router.add_get(PEERS_PATH, self._peers)
        app.router.add_get(AGENT_LINK_PATH, self._link)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        for socket in list(self._sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def put_blob(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    def seal_state(
        self,
        *specs: InstanceSpec,
        generation: int,
        server_id: str = SERVER_ID,
        held: tuple[HeldModel, ...] = (),
        cache: CachePolicy | None = None,
    ) -> Envelope:
        state = DesiredState(
            server_id=server_id, generation=generation, instances=specs, held=held, cache=cache or CachePolicy()
        )
        return seal(
            self.signing_key, state, purpose="desired", server_id=server_id, generation=generation, now=time.time()
        )

    async def want(
        self,
        *specs: InstanceSpec,
        generation: int,
        held: tuple[HeldModel, ...] = (),
        cache: CachePolicy | None = None,
    ) -> None:
        self.envelope = self.seal_state(*specs, generation=generation, held=held, cache=cache)
        await self.send(Desired(envelope=self.envelope))

    async def order_tail(self, order: TailLogs) -> None:
        envelope = seal(self.signing_key, order, purpose="order", server_id=SERVER_ID, generation=0, now=time.time())
        await self.send(Order(envelope=envelope))

    async def send(self, message: MasterMessage) -> None:
        await self.send_text(encode(message))

    async def send_text(self, text: str) -> None:
        for socket in list(self._sockets):
            await socket.send_str(text)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until `condition()` holds after some message; else AssertionError with the last observed state."""
        try:
            async with asyncio.timeout(timeout_s), self.news:
                await self.news.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s; last observed: {self.observed}") from None

    async def until_instance(
        self, instance_id: str, condition: Callable[[ObservedInstance], bool], timeout_s: float = 30.0
    ) -> ObservedInstance:
        def holds() -> bool:
            found = self.instance(instance_id)
            return found is not None and condition(found)

        await self.until(holds, timeout_s)
        found = self.instance(instance_id)
        assert found is not None
        return found

    @property
    def observed(self) -> Observed | None:
        return next((each for each in reversed(self.received) if isinstance(each, Observed)), None)

    def instance(self, instance_id: str) -> ObservedInstance | None:
        observed = self.observed
        found = [each for each in observed.instances if each.instance_id == instance_id] if observed else []
        return found[0] if found else None

    def history(self, instance_id: str) -> list[ObservedInstance]:
        """All that was ever said of it, oldest first."""
        states = [each.instances for each in self.received if isinstance(each, Observed)]
        return [each for instances in states for each in instances if each.instance_id == instance_id]

    @property
    def cache(self) -> Cache | None:
        return next((each for each in reversed(self.received) if isinstance(each, Cache)), None)

    def hellos(self) -> list[Hello]:
        return [each for each in self.received if isinstance(each, Hello)]

    def metrics(self) -> list[Metrics]:
        return [each for each in self.received if isinstance(each, Metrics)]

    def tails(self) -> list[LogTail]:
        return [each for each in self.received if isinstance(each, LogTail)]

    async def _ca(self, request: web.Request) -> web.Response:
        return web.Response(text=self.ca_pem, content_type="application/x-pem-file")

    async def _join(self, request: web.Request) -> web.Response:
        self.joins_asked += 1
        asked = msgspec.json.decode(await request.read(), type=JoinRequest)
        if asked.token != self.token or not self.tokens_left:
            problem = {"type": "about:blank", "title": "used", "status": 403, "detail": "the join token was used"}
            return web.json_response({**problem, "remedy": "Make a new one."}, status=403)
        self.tokens_left -= 1
        self.node_keys[SERVER_ID] = asked.public_key_pem
        names = ("localhost", *asked.addresses, certs.relay_wildcard(SERVER_ID))
        reply = JoinReply(
            node_id=SERVER_ID,
            name=asked.name,
            certificate_pem=self.issue(asked.tls_public_key_pem, role="agent", names=names),
            ca_pem=self.ca_pem,
            signing_public_key_pem=self.signing.public_pem,
        )
        return web.Response(body=msgspec.json.encode(reply), status=201, content_type="application/json")

    def _authenticate(self, request: web.Request) -> None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        node_id = claimed_node(bearer)
        verify_node_token(certs.load_verify_key(self.node_keys[node_id]), bearer, node_id)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        self._authenticate(request)
        data = self.blobs.get(request.match_info["sha256"])
        if data is None:
            raise web.HTTPNotFound
        asked = request.http_range
        start, end = asked.start or 0, min(len(data), asked.stop or len(data))
        self.blob_ranges.append(request.headers.get("Range", ""))
        headers = {"Content-Length": str(end - start)}
        if "Range" in request.headers:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if "Range" in request.headers else 200, headers=headers)
        await response.prepare(request)
        if self.hold_blobs:
            try:
                await asyncio.Event().wait()
            finally:
                self.blobs_given_up += 1
        if self.break_after_bytes is not None:
            await response.write(data[start : min(end, start + self.break_after_bytes)])
            self.break_after_bytes = None
            assert request.transport is not None
            request.transport.close()
            return response
        for at in range(start, end, 2**20):
            await response.write(data[at : min(end, at + 2**20)])
        return response

    async def _pieces(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        data = self.told_of.get(request.match_info["sha256"], self.blobs.get(request.match_info["sha256"]))
        if data is None:
            raise web.HTTPNotFound
        pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
        return web.Response(body=b"".join(hashlib.sha256(piece).digest() for piece in pieces))

    async def _peers(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        return web.Response(body=msgspec.json.encode(PeersReply(peers=self.peers, neighbours=self.neighbours)))

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        self._authenticate(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(encode(Welcome(node_id=SERVER_ID, hears=("cache",))))
        if self.envelope is not None:
            await socket.send_str(encode(Desired(envelope=self.envelope)))
        self._sockets.add(socket)
        try:
            async for frame in socket:
                if frame.type is WSMsgType.TEXT:
                    async with self.news:
                        self.received.append(decode_from_agent(frame.data))
                        self.news.notify_all()
        finally:
            self._sockets.discard(socket)
        return socket
