"""Fetches ahead what the master wants held here, one version at a time, and tells the master what is here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from agent.errors import AgentError
from agent.reconcile import delay_s
from agent.store.store import DISK_RESERVE_BYTES, Store
from wire.messages import Cache, CachedModel, DesiredState, HeldModel

_LOOK_EVERY_S = 10.0
_CLEAN_EVERY_S = 60.0
_LOW_SHARE = 2
"""Below this many times the reserve the disk is called low."""

log = structlog.get_logger(__name__)


class Holder:
    """`run` until cancelled; `wake` when the desired state changed."""

    def __init__(self, store: Store, desired: Callable[[], DesiredState]) -> None:
        self._store = store
        self._desired = desired
        self._wake = asyncio.Event()
        self._problems: dict[str, tuple[str, int, float]] = {}  # digest -> (why, failures, retry at)
        self._said: Cache | None = None
        self.changed = asyncio.Event()
        """Set whenever `cache` may say something new."""
        store.changed = self.changed.set
        store.held = lambda: [held.model for held in self._desired().held]

    def wake(self) -> None:
        """The desired state changed."""
        policy = self._desired().cache
        self._store.policy = policy
        self._store.download_limit.bytes_per_second = policy.download_bytes_per_second
        self._problems = {key: value for key, value in self._problems.items() if key in self._held()}
        self._wake.set()
        self.changed.set()

    async def run(self) -> None:
        cleaned_at = time.monotonic()
        while True:
            self._wake.clear()
            for held in await asyncio.to_thread(self._due):
                await self._fetch(held)
            if time.monotonic() - cleaned_at > _CLEAN_EVERY_S:
                cleaned_at = time.monotonic()
                await asyncio.to_thread(self._store.collect_garbage)
            self.changed.set()  # room on the disk changes by itself
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _held(self) -> dict[str, HeldModel]:
        return {held.model.digest: held for held in self._desired().held}

    def _due(self) -> list[HeldModel]:
        now = time.monotonic()
        missing = [held for held in self._held().values() if not self._is_here(held)]
        return [held for held in missing if self._problems.get(held.model.digest, ("", 0, 0.0))[2] <= now]

    def _is_here(self, held: HeldModel) -> bool:
        return self._store.has(held.model) or self._store.shared(held.shared_dir, held.model) is not None

    def _wait_s(self) -> float:
        times = [retry_at for _, _, retry_at in self._problems.values()]
        return max(0.1, min([time.monotonic() + _LOOK_EVERY_S, *times]) - time.monotonic())

    async def _fetch(self, held: HeldModel) -> None:
        digest = held.model.digest
        if digest not in self._held():
            return  # it was let go while another was fetched
        fetching = asyncio.create_task(self._store.fetch(held.model, lambda share: None, held.model_name))
        try:
            while not fetching.done():
                await asyncio.wait(
                    {fetching, woken := asyncio.create_task(self._wake.wait())}, return_when="FIRST_COMPLETED"
                )
                woken.cancel()
                self._wake.clear()
                if digest not in self._held() and not fetching.done():
                    return
            fetching.result()
        except AgentError as error:
            self._failed(held, error.message)
        except Exception as error:  # a fault of ours: engines and links go on
            log.exception("hold.broke_off", model=held.model_name)
            self._failed(held, f"the agent failed at it: {type(error).__name__}: {error}")
        else:
            self._problems.pop(digest, None)
            log.info("hold.here", model=held.model_name, digest=digest)
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    def _failed(self, held: HeldModel, reason: str) -> None:
        failures = self._problems.get(held.model.digest, ("", 0, 0.0))[1] + 1
        self._problems[held.model.digest] = (reason, failures, time.monotonic() + delay_s(failures))
        log.warning("hold.failed", model=held.model_name, reason=reason, failures=failures)

    def cache(self) -> Cache:
        """What is here now. Reads the disk."""
        models = {model.digest: model for model in self._store.cached()}
        for digest, held in self._held().items():
            problem = self._problems.get(digest, ("", 0, 0.0))[0]
            if digest not in models and self._is_here(held):  # on shared storage
                models[digest] = CachedModel(
                    digest=digest, model_name=held.model_name, size_bytes=held.model.size_bytes, held=True
                )
            elif digest not in models:
                models[digest] = CachedModel(
                    digest=digest,
                    model_name=held.model_name,
                    size_bytes=held.model.size_bytes,
                    progress=min(0.99, round(self._store.share(held.model), 2)),
                    held=True,
                    problem=problem,
                )
        used = sum(self._store.shelf.blob_sizes().values())
        free = self._store.free_bytes()
        return Cache(
            models=tuple(models[digest] for digest in sorted(models)),
            used_bytes=used,
            quota_bytes=self._store.quota_bytes,
            disk_free_bytes=free // 2**26 * 2**26,  # in steps: what others write is no news
            alarm=_alarm(used, self._store.quota_bytes, free) or self._store.damage.alarm(),
        )

    def news(self) -> Cache | None:
        """`cache` if it says something else than the last time."""
        cache = self.cache()
        if cache == self._said:
            return None
        self._said = cache
        return cache

    def forget_said(self) -> None:
        """A new link: the master is told anew."""
        self._said = None
        self.changed.set()


def _alarm(used_bytes: int, quota_bytes: int | None, free_bytes: int) -> str:
    if free_bytes < _LOW_SHARE * DISK_RESERVE_BYTES:
        return f"the disk of the model cache is nearly full: {free_bytes / 2**20:,.0f} MiB are free"
    if quota_bytes is not None and used_bytes > quota_bytes:
        return (
            f"the models in use or held here need {used_bytes / 1e9:.1f} GB, "
            f"more than the quota of {quota_bytes / 1e9:.1f} GB"
        )
    return ""
