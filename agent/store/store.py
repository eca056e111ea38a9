"""The model files of this server as the rest of the agent knows them: fetch, where, what is here, what may go."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import structlog

from agent.errors import CannotRun, DiskFull, FetchFailed
from agent.store.blob import Blob, opened
from agent.store.cache import Kept, surplus, to_evict
from agent.store.damage import Damage
from agent.store.parts import Part, open_part
from agent.store.shelf import Shelf, differs
from agent.store.sources import MASTER, PeerSource
from agent.store.swarm import Finder, Swarm
from wire.errors import BadMessage
from wire.manifest import Manifest, ManifestFile, check_manifest
from wire.messages import CachedModel, CachePolicy, InstanceSpec
from wire.pace import Limit

DISK_RESERVE_BYTES = 256 * 2**20
"""Never filled by downloads."""
_PROGRESS_EVERY_S = 0.5
_HASHES_AT_ONCE = 4

log = structlog.get_logger(__name__)


class Network(Finder, Protocol):
    """Where blobs come from."""

    async def hashes(self, file: ManifestFile) -> Sequence[bytes]: ...


class Store:
    """Blobs and checkouts below one folder. Safe for any number of fetches at once; one process owns it."""

    def __init__(
        self,
        root: Path,
        network: Network,
        *,
        quota_bytes: int | None = None,
        shared_roots: Sequence[str] | None = None,
    ) -> None:
        """`shared_roots`: folders below which shared storage may be used in place; None: anywhere."""
        self.shelf = Shelf(root)
        self.shared_roots = shared_roots
        self._network = network
        self._own_quota_bytes = quota_bytes
        self._locks: dict[str, asyncio.Lock] = {}
        self._checkout_lock = asyncio.Lock()
        self._fetching: list[Manifest] = []
        self._names: dict[str, str] = {}
        self._evicting = threading.RLock()
        self._parts: dict[str, tuple[Part, Swarm]] = {}
        self.damage = Damage(self.shelf)
        self.verified: Mapping[str, float] = {}
        """Digests of versions, and when all their files had been read again (Unix time; 0.0: never since they came)."""
        self._came: dict[str, Counter[bool]] = {}  # digest -> bytes, by whether they came from the master
        self.download_limit = Limit()
        self.policy = CachePolicy()
        self.changed: Callable[[], None] = lambda: None
        """Called when `cached` says something new."""
        self.in_use: Callable[[], Collection[Manifest]] = lambda: ()
        """Manifests that instances need."""
        self.held: Callable[[], Collection[Manifest]] = lambda: ()
        """Manifests that must stay although nothing needs them now."""

    @property
    def quota_bytes(self) -> int | None:
        """The smaller of what the master and this server's configuration say."""
        bounds = [bound for bound in (self._own_quota_bytes, self.policy.quota_bytes) if bound is not None]
        return min(bounds, default=None)

    def folder_of(self, spec: InstanceSpec) -> Path:
        """Where an instance finds its model's files. Looks at the disk."""
        return self.shared(spec.shared_dir, spec.model) or self.model_dir(spec.model)

    def is_ready(self, spec: InstanceSpec) -> bool:
        """Whether an instance's files are all there. Looks at the disk."""
        return self.has(spec.model) or self.shared(spec.shared_dir, spec.model) is not None

    def shared(self, shared_dir: str, manifest: Manifest) -> Path | None:
        """The shared folder when this server mounts it, may use it, and it holds the files; None: they are fetched."""
        if not shared_dir:
            return None
        folder = Path(shared_dir)
        if self.shared_roots is not None and not any(folder.is_relative_to(root) for root in self.shared_roots):
            return None
        if folder.is_relative_to(self.shelf.models.parent):
            return None
        problem = differs(folder, manifest)
        if problem:
            log.info("store.shared_not_used", folder=shared_dir, problem=problem)
        return None if problem else folder

    def model_dir(self, manifest: Manifest) -> Path:
        return self.shelf.checkout(manifest.digest)

    def has(self, manifest: Manifest) -> bool:
        return self.model_dir(manifest).is_dir() and not self.damage.of(manifest)

    async def prepare(self, spec: InstanceSpec, progress: Callable[[float], None]) -> Path:
        """Files of an instance: in place on shared storage, else fetched. Raises as `fetch`."""
        shared = await asyncio.to_thread(self.shared, spec.shared_dir, spec.model)
        return shared or await self.fetch(spec.model, progress, spec.model_name)

    async def fetch(self, manifest: Manifest, progress: Callable[[float], None], model_name: str = "") -> Path:
        """Folder with the files of `manifest`, once every one is here and its sha256 was checked.

        Raises:
            CannotRun: the manifest is damaged.
            FetchFailed: not now (no connection, wrong bytes, no disk); what came already is kept.
        """
        try:
            check_manifest(manifest)
        except BadMessage as error:
            raise CannotRun(
                f"the model's manifest is damaged: {error.message}", remedy="Import the model again."
            ) from error
        if self.has(manifest):
            await asyncio.to_thread(self.shelf.label, manifest, model_name)
            return self.model_dir(manifest)
        self._fetching.append(manifest)
        self._names[manifest.digest] = model_name
        watcher = asyncio.create_task(self._report(manifest, progress))
        try:
            await self._bring(manifest)
            async with self._checkout_lock:
                if not self.model_dir(manifest).is_dir():
                    await asyncio.to_thread(self.shelf.check_out, manifest, model_name)
                if damaged := self.damage.of(manifest):
                    await asyncio.to_thread(self.damage.relink, damaged, self.in_use())
            return self.model_dir(manifest)
        finally:
            watcher.cancel()
            self._fetching.remove(manifest)
            self.changed()

    async def note_damaged(self, file: ManifestFile, problem: str) -> None:
        """A blob that is here is not what it was; until `mend` no engine starts with it, and no peer gets it."""
        log.error("store.damaged", file=file.path, blob=file.sha256, problem=problem)
        self.damage.files[file.sha256] = file  # at once: a fetch of another version may have the lock for hours
        async with self._locked([file.sha256]):
            self.damage.files[file.sha256] = file  # that fetch has taken the blob for a good one
            keep = self.free_bytes() > file.size_bytes + DISK_RESERVE_BYTES
            await asyncio.to_thread(self.shelf.set_aside, file, keep)
        self.changed()

    async def mend(self) -> None:
        """Fetch again what is damaged; versions that nothing needs go instead.

        Raises as `fetch`, at the end: one that cannot come stops no other.
        """
        if not self.damage.files:
            return
        labels = await asyncio.to_thread(self.shelf.labels)
        bound = {manifest.digest for manifest in self._bound()}
        broken = [label for label, _ in labels if self.damage.of(label.manifest)]
        unused = [label.manifest.digest for label in broken if label.manifest.digest not in bound]
        if unused:
            await asyncio.to_thread(self._drop, unused)
        wanted = [label for label in broken if label.manifest.digest in bound]
        fetches = (self.fetch(label.manifest, lambda share: None, label.model_name) for label in wanted)
        ends = await asyncio.gather(*fetches, return_exceptions=True)
        tried = zip(wanted, ends, strict=True)
        self.damage.vain = {label.manifest.digest: str(end) for label, end in tried if isinstance(end, BaseException)}
        self.changed()
        async with self._checkout_lock:
            await asyncio.to_thread(self.damage.forget_what_went)
        for error in [end for end in ends if isinstance(end, BaseException)]:
            raise error

    async def _bring(self, manifest: Manifest) -> None:
        """Every blob of a manifest into its place."""
        files = {file.sha256: file for file in manifest.files}
        async with self._locked(sorted(files)):  # who comes second finds them done
            missing = [file for file in files.values() if not self.shelf.has_blob(file)]
            if not missing:
                return
            peers = await self._look(manifest, missing)
            missing = [file for file in missing if not self.shelf.has_blob(file)]
            await asyncio.to_thread(self._make_room, missing)
            for file in [file for file in missing if not file.size_bytes]:
                self.shelf.empty_blob(file)
            await self._swarm(manifest, [file for file in missing if file.size_bytes], peers)

    async def _look(self, manifest: Manifest, missing: list[ManifestFile]) -> list[PeerSource]:
        """Who else has it. What lies on this very machine is taken over at once."""
        try:
            peers, neighbours = await self._network.look(manifest.digest)
        except FetchFailed as error:
            log.info("fetch.no_list_of_peers", error=error.message)
            return []
        for folder in neighbours:
            for file in missing:
                if not self.shelf.has_blob(file) and await asyncio.to_thread(self.shelf.take_from, Path(folder), file):
                    log.info("store.taken_over", file=file.path, folder=folder)
        return peers

    async def _swarm(self, manifest: Manifest, files: list[ManifestFile], peers: list[PeerSource]) -> None:
        if not files:
            return
        gate = asyncio.Semaphore(_HASHES_AT_ONCE)

        async def hashes(file: ManifestFile) -> Sequence[bytes]:
            async with gate:
                return await self._network.hashes(file)

        told = await asyncio.gather(*(hashes(file) for file in files))
        blobs: list[Blob] = []
        async with opened(blobs):
            for file, pieces in zip(files, told, strict=True):
                part = await asyncio.to_thread(open_part, file, self.shelf.partial, pieces)
                blobs.append(Blob(part, pieces))
            swarm = Swarm(
                blobs, manifest.digest, self._network, self.download_limit, self._counter(manifest.digest), peers
            )
            self._parts |= {blob.file.sha256: (blob.part, swarm) for blob in blobs}
            try:
                await swarm.run()
                for blob in blobs:
                    place = self.shelf.blob(blob.file.sha256)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    await asyncio.to_thread(blob.part.finish, place)
            finally:
                for file in files:
                    self._parts.pop(file.sha256, None)

    def _counter(self, digest: str) -> Callable[[str, int], None]:
        came = self._came.setdefault(digest, Counter())

        def count(source: str, count_bytes: int) -> None:
            came[source == MASTER] += count_bytes

        return count

    def part(self, sha256: str) -> tuple[Part, set[int]] | None:
        """A blob that is on its way: its part, and the pieces that are coming."""
        found = self._parts.get(sha256)
        return None if found is None else (found[0], found[1].asked_for(sha256))

    @asynccontextmanager
    async def _locked(self, sha256s: Sequence[str]) -> AsyncIterator[None]:
        """Locks of blobs, always in the same order."""
        async with AsyncExitStack() as stack:
            for sha256 in sha256s:
                await stack.enter_async_context(self._locks.setdefault(sha256, asyncio.Lock()))
            yield

    # ------------------------------------------------------------------------------------------------ room

    def mark_used(self, manifest: Manifest) -> None:
        """It was in use until now: it goes last."""
        self.shelf.mark_used(manifest.digest)

    def collect_garbage(self, coming_bytes: int = 0) -> int:
        """Remove what the policy wants gone, longest unused first, never what is in use or held; bytes freed.

        `coming_bytes` are about to be added.
        """
        with self._evicting:
            going = surplus(self._kept(), self.policy.keep_versions)
            quota = self.quota_bytes
            if quota is None:
                return self._evict(0, going) if going else 0
            return self._evict(sum(self.shelf.blob_sizes().values()) + coming_bytes - quota, going)

    def take_over(self) -> None:
        """What an earlier agent left on this disk."""
        self.shelf.adopt_unlabelled([*self.in_use(), *self.held()])
        self.damage.take_over(self.in_use())

    def _kept(self) -> list[Kept]:
        bound = {manifest.digest for manifest in self._bound()}
        return [
            Kept(
                digest=label.manifest.digest,
                model_name=label.model_name,
                used_at=used_at,
                blobs=frozenset(file.sha256 for file in label.manifest.files),
                bound=label.manifest.digest in bound,
            )
            for label, used_at in self.shelf.labels()
        ]

    def _bound(self) -> list[Manifest]:
        return [*self.in_use(), *self.held(), *self._fetching]

    def _drop(self, digests: Collection[str]) -> None:
        with self._evicting:
            self._evict(0, digests)

    def _evict(self, excess_bytes: int, going: Collection[str] = ()) -> int:
        """Free that much, or as much as is not in use; of `going`, what nothing needs by now."""
        if excess_bytes <= 0 and not going:
            return 0
        needed = {file.sha256 for manifest in self._bound() for file in manifest.files}
        freed = self.shelf.remove_parts(needed) if excess_bytes > 0 else 0
        sizes = self.shelf.blob_sizes()
        kept = self._kept()
        going = [one.digest for one in kept if one.digest in going and not one.bound]
        gone = set(to_evict(kept, sizes, excess_bytes - freed, going))
        needed |= {sha256 for one in kept if one.digest not in gone for sha256 in one.blobs}
        for digest in gone:
            self.shelf.remove(digest)
        for sha256, size in sizes.items():
            if sha256 not in needed:
                self.shelf.remove_blob(sha256)
                freed += size
        log.info("store.garbage_collected", freed_bytes=freed, asked_bytes=excess_bytes, versions=len(gone))
        self.changed()
        return freed

    def _make_room(self, missing: Sequence[ManifestFile]) -> None:
        """Raises DiskFull when the files do not fit, with all that is unused gone."""
        needed = sum(max(0, file.size_bytes - self._reserved(file)) for file in missing)
        if not needed:
            return
        self.collect_garbage(sum(file.size_bytes for file in missing))
        self.shelf.blobs.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.shelf.blobs).free
        if free < needed + DISK_RESERVE_BYTES:
            with self._evicting:
                free += self._evict(needed + DISK_RESERVE_BYTES - free)
        if free < needed + DISK_RESERVE_BYTES:
            raise DiskFull(
                f"the disk is too full: {needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free "
                f"(of which {DISK_RESERVE_BYTES / 2**20:.0f} MiB stay reserved)"
            )

    def _reserved(self, file: ManifestFile) -> int:
        try:
            return self.shelf.part(file.sha256).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    # ------------------------------------------------------------------------------------------------ what is here

    def cached(self) -> tuple[CachedModel, ...]:
        """Every version that is here or on its way. Reads the disk."""
        in_use = {manifest.digest for manifest in self.in_use()}
        held = {manifest.digest for manifest in self.held()}
        found = {}
        for label, used_at in self.shelf.labels():
            digest = label.manifest.digest
            found[digest] = self._cached(label.manifest, label.model_name, digest in in_use, digest in held, used_at)
        for manifest in list(self._fetching):
            if manifest.digest not in found:
                name = self._names.get(manifest.digest, "")
                digest = manifest.digest
                found[digest] = self._cached(manifest, name, digest in in_use, digest in held, time.time())
        return tuple(sorted(found.values(), key=lambda one: (one.model_name, one.digest)))

    def _cached(self, manifest: Manifest, name: str, in_use: bool, held: bool, used_at: float) -> CachedModel:
        came = self._came.get(manifest.digest, Counter[bool]())
        return CachedModel(
            digest=manifest.digest,
            model_name=name,
            size_bytes=manifest.size_bytes,
            progress=1.0 if self.has(manifest) else min(0.99, round(self.share(manifest), 2)),
            used_at=round(used_at),
            in_use=in_use,
            held=held,
            from_master_bytes=came[True],
            from_peers_bytes=came[False],
            verified_at=self.verified.get(manifest.digest, 0.0),
            problem=self.damage.problem(manifest),
        )

    def share(self, manifest: Manifest) -> float:
        """How much of a manifest's bytes is here, 0 to 1."""
        done = 0
        for file in manifest.files:
            part = self._parts.get(file.sha256)
            if part is not None:
                done += part[0].done_bytes
            elif self.shelf.has_blob(file):
                done += file.size_bytes
        return min(1.0, done / max(1, manifest.size_bytes))

    async def _report(self, manifest: Manifest, progress: Callable[[float], None]) -> None:
        while True:
            progress(self.share(manifest))
            self.changed()
            await asyncio.sleep(_PROGRESS_EVERY_S)

    def free_bytes(self) -> int:
        """On the disk that the blobs lie on."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.shelf.blobs if self.shelf.blobs.exists() else self.shelf.models.parent).free
        return 0
