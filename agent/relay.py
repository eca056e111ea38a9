"""The door of this server for gateways and peers: mutual TLS in, loopback out, byte for byte.

A gateway's connection names its instance by SNI (`wire.certs.relay_name`) and proves itself by a certificate of this
CA whose organizational unit is `gateway`, and which the desired state does not name as revoked. Nothing is parsed, and
at most a buffer is held: a slow reader slows the writer. A peer, whose unit is `agent`, or the master names
`wire.pieces.DOOR` and is handed to the server of blobs.
TLS has no half-close in asyncio: when the engine ends its side everything it wrote is delivered first; when the
gateway goes, the engine's connection is closed at once, so that it stops working on the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import weakref
from collections.abc import Callable, Container
from typing import Any, cast

import structlog

from agent.home import AgentHome, write_whole
from wire.certs import relay_name, relay_wildcard
from wire.join import NodeIdentity
from wire.pieces import DOOR

FIRST_PORT = 8444
_PIECE_BYTES = 64 * 2**10
_CONNECT_TIMEOUT_S = 5.0
_MAY_HAVE_BLOBS = {"agent", "master"}  # the latter to mend its own store

log = structlog.get_logger(__name__)


class Relay:
    """Listens from `start` to `close`."""

    def __init__(
        self,
        home: AgentHome,
        identity: NodeIdentity,
        port_of: Callable[[str], int | None],
        revoked: Callable[[], Container[str]] = tuple,
        blobs: Callable[[], asyncio.Protocol] | None = None,
    ) -> None:
        """`port_of(instance_id)` gives the loopback port of a running instance, None for others.

        `blobs()` makes the protocol that serves a peer.

        `revoked()` holds the serial numbers of certificates that are refused (`wire.certs.serial`).
        """
        self._home = home
        self._server_id = identity.node_id
        self._port_of = port_of
        self._revoked = revoked
        self._blobs = blobs
        self._peers: dict[asyncio.Transport, str] = {}  # -> serial number, as below
        self._names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._context = self._make_context(identity)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], str] = {}  # -> serial number of the peer's certificate
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen on `port`; 0: the port of last time, else 8444, else any free one, kept for next time.

        Raises OSError when a fixed port is in use.
        """
        for candidate in (port,) if port else (self._last_port(), FIRST_PORT, 0):
            if candidate is None:
                continue
            try:
                self._server = await asyncio.get_running_loop().create_server(
                    lambda: _Door(self), host, candidate, ssl=self._context, ssl_handshake_timeout=10
                )
                break
            except OSError as error:
                if candidate == port:
                    raise
                log.info("relay.port_in_use", port=candidate, error=str(error))
        assert self._server is not None  # noqa: S101 - port 0 always binds
        self.port = self._server.sockets[0].getsockname()[1]
        write_whole(self._home.relay_port_file, str(self.port).encode())
        log.info("relay.listening", host=host, port=self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        for transport in list(self._peers):
            transport.abort()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut_revoked(self) -> None:
        """End the connections of certificates that have been revoked since they came."""
        revoked = self._revoked()
        for task, serial in self._connections.items():
            if serial in revoked:
                task.cancel()
        for transport, serial in list(self._peers.items()):
            if serial in revoked:
                transport.abort()

    def protocol_for(self, transport: asyncio.Transport) -> asyncio.Protocol:
        """What a new connection is served by, from here on."""
        ssl_object = transport.get_extra_info("ssl_object")
        certificate = ssl_object.getpeercert() or {}
        serial = str(certificate.get("serialNumber", ""))
        wants_blobs = self._names.get(ssl_object, "") == relay_name(DOOR, self._server_id)
        if wants_blobs and self._blobs and _units_of(certificate) & _MAY_HAVE_BLOBS and serial not in self._revoked():
            self._peers = {one: of for one, of in self._peers.items() if not one.is_closing()} | {transport: serial}
            return self._blobs()
        reader = asyncio.StreamReader(limit=_PIECE_BYTES)
        return asyncio.StreamReaderProtocol(reader, self._accept)

    def _last_port(self) -> int | None:
        try:
            return int(self._home.relay_port_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _make_context(self, identity: NodeIdentity) -> ssl.SSLContext:
        write_whole(self._home.relay_pem, (identity.certificate_pem + identity.tls_key_pem).encode())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._home.relay_pem)
        context.load_verify_locations(cadata=identity.ca_pem)
        context.verify_mode = ssl.CERT_REQUIRED
        context.sni_callback = self._remember_name
        return context

    def _remember_name(self, connection: Any, name: str | None, context: ssl.SSLContext) -> int | None:
        if name is None or not name.endswith(relay_wildcard(self._server_id)[1:]):
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        self._names[connection] = name
        return None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        certificate = writer.get_extra_info("ssl_object").getpeercert() or {}
        self._connections[task] = str(certificate.get("serialNumber", ""))
        try:
            await self._serve(reader, writer, certificate)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            log.info("relay.broken", error=str(error) or type(error).__name__)
        except asyncio.CancelledError:
            log.debug("relay.cancelled")  # closing; nobody awaits the streams' callback
        finally:
            self._connections.pop(task, None)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, certificate: dict[str, Any]
    ) -> None:
        name = self._names.get(writer.get_extra_info("ssl_object"), "")
        revoked = str(certificate.get("serialNumber", "")) in self._revoked()
        if revoked or "gateway" not in _units_of(certificate):
            reason = "its certificate was revoked" if revoked else "not a gateway"
            log.warning("relay.refused", name=name, peer=writer.get_extra_info("peername"), reason=reason)
            writer.transport.abort()
            return
        instance_id = name.split(".")[0]
        port = self._port_of(instance_id) if name == relay_name(instance_id, self._server_id) else None
        if port is None:
            log.info("relay.unknown_instance", name=name)
            return
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", port, limit=_PIECE_BYTES)
        for end in (writer, engine_writer):
            _no_delay(end)
        requests = asyncio.create_task(_pipe(reader, engine_writer))
        answers = asyncio.create_task(_pipe(engine_reader, writer))
        try:
            await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (requests, answers):
                task.cancel()
            await asyncio.gather(requests, answers, return_exceptions=True)
            engine_writer.close()
        if not writer.is_closing():  # the engine ended: let the last bytes out
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await writer.wait_closed()


class _Door(asyncio.Protocol):
    """Looks at who comes, and hands the connection on."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        door = cast(asyncio.Transport, transport)  # of a TLS server; uvloop's is no subclass
        protocol = self._relay.protocol_for(door)
        door.set_protocol(protocol)
        protocol.connection_made(transport)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()


def _no_delay(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _units_of(certificate: dict[str, Any]) -> set[str]:
    """Organizational units of a verified certificate as `getpeercert()` gives it."""
    subject = certificate.get("subject", ())
    return {value for rdn in subject for key, value in rdn if key == "organizationalUnitName"}
