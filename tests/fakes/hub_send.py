"""How the fake Hub sends a body: whole or in part, at a pace, from disk by sendfile, and as badly as a fault says."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from tests.fakes.hub_faults import Answer, Fault

_PIECE_BYTES = 256 << 10
_SENDFILE_BYTES = 8 << 20
# Pieces a second at a limited pace.
_BEATS = 20

Count = Callable[[int], None]


async def send(
    request: web.Request, answer: Answer, met: Fault | None, bytes_per_second: float, count: Count
) -> web.StreamResponse:
    """Sends the answer as the fault that it met says; `count` is told of the bytes of the body as they go out."""
    assert answer.body is not None
    fault = met or Fault()
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    length = answer.count + fault.pad
    if fault.truncate_to is not None:
        length = min(length, fault.truncate_to)
    if answer.gzip:
        response.enable_compression(web.ContentCoding.gzip)
    else:
        response.content_length = length if fault.content_length is None else fault.content_length
    if fault.end_after is not None or fault.content_length is not None:
        response.force_close()
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    stops = (fault.cut_after, fault.end_after, fault.stall_after, fault.content_length)
    until = min([length, *(at for at in stops if at is not None)])
    pace = fault.bytes_per_second or bytes_per_second
    content = answer.body.content
    plain = met is None and not pace and not answer.gzip
    if not (plain and isinstance(content, Path) and await _send_from_disk(request, content, answer, count)):
        await _send_pieces(response, answer, fault, until, pace, count)
    if fault.cut_after is not None:
        await reset(request)
    if fault.stall_after is not None:
        await forever()
    await response.write_eof()
    return response


async def _send_pieces(
    response: web.StreamResponse, answer: Answer, fault: Fault, until: int, pace: float, count: Count
) -> None:
    assert answer.body is not None
    loop = asyncio.get_running_loop()
    started, piece_bytes = loop.time(), max(1, min(_PIECE_BYTES, int(pace / _BEATS))) if pace else _PIECE_BYTES
    with answer.body.opened() as read:
        sent = 0
        while sent < until:
            wanted = min(piece_bytes, until - sent)
            # Without a pace too: a write that the socket takes at once gives no other connection a turn.
            await asyncio.sleep(max(0.0, started + (sent + wanted) / pace - loop.time()) if pace else 0)
            piece = read(answer.first + sent, min(wanted, max(0, answer.count - sent)))
            piece = _flipped(piece.ljust(wanted, b"\0"), answer.first + sent, fault.flip_at)
            await response.write(piece)
            count(wanted)
            sent += wanted


def _flipped(piece: bytes, offset: int, at: int | None) -> bytes:
    if at is None or not offset <= at < offset + len(piece):
        return piece
    changed = bytearray(piece)
    changed[at - offset] ^= 0xFF
    return bytes(changed)


async def _send_from_disk(request: web.Request, path: Path, answer: Answer, count: Count) -> bool:
    """By sendfile; False where the loop has none (uvloop)."""
    loop = asyncio.get_running_loop()
    if request.transport is None:
        raise ConnectionResetError("gone")
    with path.open("rb") as file:
        sent = 0
        while sent < answer.count:
            wanted = min(_SENDFILE_BYTES, answer.count - sent)
            try:
                await loop.sendfile(request.transport, file, answer.first + sent, wanted)
            except NotImplementedError:
                return False
            count(wanted)
            sent += wanted
    return True


async def reset(request: web.Request) -> None:
    """Breaks the connection with a TCP reset, once all that was written has reached the other side."""
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        # A reset throws away what still waits to be sent, and "cut after n bytes" means n.
        while transport.get_write_buffer_size() or _unsent_bytes(sock.fileno()):
            await asyncio.sleep(0.002)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await forever()


def _unsent_bytes(descriptor: int) -> int:
    if descriptor < 0:
        return 0
    return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


async def forever() -> None:
    """Until the client goes or the server ends (aiohttp cancels the handler)."""
    await asyncio.Event().wait()
