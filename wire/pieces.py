"""How big files travel between servers: in pieces, each with a hash of its own, from whoever has it.

The master tells the hashes of a file's pieces; a server checks each as it comes and may hand it on at once.
The file's own sha256, which the signed manifest names, is checked at the end all the same.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from wire.errors import BadMessage

PIECE_BYTES = 4 << 20
HASH_BYTES = 32
PIECES_PATH = "/api/v1/blobs/{sha256}/pieces"
"""GET at the master: the concatenated sha256 digests (32 bytes each) of a blob's pieces, in order."""
PEERS_PATH = "/api/v1/manifests/{digest}/peers"
"""GET at the master: a `PeersReply`."""
DOOR = "blobs"
"""Name, in place of an instance's id, by which a relay knows that a peer wants blobs (`wire.certs.relay_name`)."""
HAVE_PATH = "/have"
"""POST at a peer: sha256s as a JSON array; answers a `HaveReply`."""
PEER_BLOB_PATH = "/blobs/{sha256}"
"""GET at a peer, with a Range of pieces that it has."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that has, or is getting, what was asked for."""

    server_id: str
    addresses: tuple[str, ...]
    port: int


class PeersReply(msgspec.Struct, frozen=True, kw_only=True):
    """Who else has files of a manifest. `neighbour`: folders of blobs on the very machine that asked."""

    peers: tuple[Peer, ...] = ()
    neighbours: tuple[str, ...] = ()


class Have(msgspec.Struct, frozen=True, kw_only=True):
    """What a server has of one blob: bitmaps (`pack`) of the pieces that are there, and of those on their way."""

    done: str = ""
    coming: str = ""
    whole: bool = False


class HaveReply(msgspec.Struct, frozen=True, kw_only=True):
    """By sha256; one that is not named is not there at all."""

    blobs: dict[str, Have] = {}


def piece_count(size_bytes: int) -> int:
    return -(-size_bytes // PIECE_BYTES)


def piece_span(index: int, size_bytes: int) -> tuple[int, int]:
    """[start, end) of piece `index` in a file of that size."""
    start = index * PIECE_BYTES
    return start, min(start + PIECE_BYTES, size_bytes)


def pack(pieces: set[int], count: int) -> str:
    """Numbers below `count` as the base64 of a bitmap: piece 0 is the lowest bit of the first byte."""
    bits = bytearray(-(-count // 8))
    for piece in pieces:
        bits[piece // 8] |= 1 << piece % 8
    return base64.b64encode(bits).decode()


def unpack(text: str, count: int) -> set[int]:
    """Reverse of `pack`; what lies beyond `count` is left out. Raises BadMessage."""
    try:
        bits = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadMessage("a bitmap of pieces that is no base64") from error
    return {piece for piece in range(min(count, len(bits) * 8)) if bits[piece // 8] >> piece % 8 & 1}
