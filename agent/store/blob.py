"""A blob on its way here: its part, the hashes of its pieces, and the hash of the whole that follows as it grows."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from agent.errors import CorruptBlob
from agent.store.parts import Part
from wire.manifest import ManifestFile
from wire.pieces import PIECE_BYTES, piece_span

_HASHED_AT_ONCE = 16
"""Pieces."""


@dataclass
class Blob:
    """`hashes`: of its pieces. `grown` is set whenever a piece came."""

    part: Part
    hashes: Sequence[bytes]
    hashed_bytes: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    _hashed: Any = field(default_factory=hashlib.sha256)

    @property
    def file(self) -> ManifestFile:
        return self.part.file

    async def keep(self, index: int, piece: memoryview) -> bool:
        """Take a piece in if its hash is right; whether it is. Raises DiskFull."""
        if not await asyncio.to_thread(self._written, index, piece):
            return False
        self.part.mark(index)
        self.grown.set()
        return True

    async def check_whole(self) -> None:
        """Until all of it is there and its sha256 was checked. Raises CorruptBlob; then nothing of it is left."""
        while self.hashed_bytes < self.file.size_bytes:
            self.grown.clear()
            end = self._contiguous()
            if end == self.hashed_bytes:
                await self.grown.wait()
            else:
                await asyncio.to_thread(self._hash_on, end)
        if self._hashed.hexdigest() != self.file.sha256:
            await asyncio.to_thread(self.part.drop)
            raise CorruptBlob(
                f"{self.file.path}: the bytes received do not fit sha256 {self.file.sha256[:12]}: thrown away"
            )

    def _written(self, index: int, piece: memoryview) -> bool:
        if hashlib.sha256(piece).digest() != self.hashes[index]:
            return False
        self.part.write(piece_span(index, self.file.size_bytes)[0], piece)
        return True

    def _contiguous(self) -> int:
        """Where the bytes end that are there without a hole, not far beyond what was hashed."""
        index = first = self.hashed_bytes // PIECE_BYTES
        while index in self.part.done and index - first < _HASHED_AT_ONCE:
            index += 1
        return min(index * PIECE_BYTES, self.file.size_bytes)

    def _hash_on(self, end: int) -> None:
        while self.hashed_bytes < end:
            data = self.part.read(self.hashed_bytes, min(PIECE_BYTES, end - self.hashed_bytes))
            if not data:
                raise CorruptBlob(f"{self.file.path} became shorter while it was fetched")
            self._hashed.update(data)
            self.hashed_bytes += len(data)


@asynccontextmanager
async def opened(blobs: Sequence[Blob]) -> AsyncIterator[None]:
    """Parts closed at the end, whatever happens."""
    try:
        yield
    finally:
        for blob in blobs:
            blob.part.close()
