"""`/ws/live`: staff pages that stay fresh. One poller per topic and process, however many pages look at it."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import structlog
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.contrib.auth import get_user, get_user_model
from django.utils import timezone

from monitoring.live import topics

log = structlog.get_logger(__name__)

POLL_S = 1.0
RECHECK_POLLS = 15  # then: is this person still signed in, of the staff, with the permission?
MAX_SLOTS = 2000
NO_LOGIN, FORBIDDEN, NO_TOPIC = 4401, 4403, 4404


class Poller:
    """Renders one topic about each second while someone looks; its task ends with the last page."""

    _all: dict[tuple[str, Any, int], Poller] = {}

    def __init__(self, key: tuple[str, Any, int], topic: topics.Topic, argument: str) -> None:
        self.key, self.topic, self.argument = key, topic, argument
        self.pages: set[LiveConsumer] = set()
        self.asked = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"live {key[0]}")

    @classmethod
    def join(cls, page: LiveConsumer, text: str, topic: topics.Topic, argument: str) -> Poller:
        scope = page.user.pk if topic.per_user else None
        key = (text, scope, id(asyncio.get_running_loop()))
        poller = cls._all.get(key)
        if poller is None:
            poller = cls._all[key] = cls(key, topic, argument)
        poller.pages.add(page)
        return poller

    async def leave(self, page: LiveConsumer) -> None:
        self.pages.discard(page)
        if self.pages:
            return
        if self._all.get(self.key) is self:
            del self._all[self.key]
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def _run(self) -> None:
        polls = 0
        while True:
            polls += 1
            try:
                if polls % RECHECK_POLLS == 0:
                    await self._recheck()
                await self._poll()
            except Exception:
                log.exception("live.poll_failed", topic=self.key[0])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.asked.wait(), POLL_S)
            self.asked.clear()

    async def _poll(self) -> None:
        pages = list(self.pages)
        if not pages:
            return
        pks = frozenset[str]().union(*(page.pks for page in pages))
        ask = topics.Ask(pages[0].user, self.argument, pks, timezone.now())
        fragments = await database_sync_to_async(self.topic.render)(ask)
        for page in pages:
            await page.show(fragments)

    async def _recheck(self) -> None:
        for page in list(self.pages):
            user = await database_sync_to_async(_person_now)(page.user.pk, page.scope.get("session"), self.topic)
            if user is None:
                await page.close(FORBIDDEN)
            else:
                page.user = user  # a user object keeps the permissions it once had


def _person_now(user_pk: Any, session: Any, topic: topics.Topic) -> Any:
    """The person of a page as the database has them now; None when the page is not theirs to see any more."""
    if session is None:
        user = get_user_model().objects.filter(pk=user_pk).first()
    else:  # signed out, or with another password since; `type` would be that of the lazy wrapper that Channels has
        user = get_user(SimpleNamespace(session=session.__class__(session.session_key)))
    return user if user is not None and user.pk == user_pk and topics.may_see(user, topic) else None


class LiveConsumer(AsyncJsonWebsocketConsumer):
    """One open page. It says which slots it has; it gets `{slot: html}` of those that changed."""

    channel_layer_alias = "none: pages stay live without one"
    user: Any
    poller: Poller | None = None

    async def connect(self) -> None:
        self.user = self.scope.get("user")
        self.slots: frozenset[str] = frozenset()
        self.pks: frozenset[str] = frozenset()
        self.sent: dict[str, str] = {}
        await self.accept()  # first: a browser sees the code of a close only after that
        if self.user is None or not (self.user.is_authenticated and self.user.is_staff):
            await self.close(NO_LOGIN)
            return
        text = parse_qs(self.scope.get("query_string", b"").decode()).get("topic", [""])[0]
        found = topics.find(text)
        if found is None:
            await self.close(NO_TOPIC)
            return
        topic, argument = found
        if not await database_sync_to_async(topics.may_see)(self.user, topic):
            await self.close(FORBIDDEN)
            return
        self.poller = Poller.join(self, text, topic, argument)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        """`{"slots": [...]}`: what this page shows now."""
        slots = content.get("slots") if isinstance(content, dict) else None
        if not isinstance(slots, list) or len(slots) > MAX_SLOTS:
            return
        names = [slot for slot in slots if isinstance(slot, str) and len(slot) < 200]
        self.slots, self.pks = frozenset(names), topics.wanted_pks(names)
        self.sent = {slot: html for slot, html in self.sent.items() if slot in self.slots}
        if self.poller is not None:
            self.poller.asked.set()

    @classmethod
    async def decode_json(cls, text_data: str) -> Any:
        try:
            return await super().decode_json(text_data)
        except ValueError:
            return None

    async def show(self, fragments: dict[str, str]) -> None:
        """Send what this page has and what differs from what it got before."""
        changed = {slot: html for slot, html in fragments.items() if slot in self.slots and self.sent.get(slot) != html}
        if changed:
            self.sent |= changed
            await self.send_json(changed)

    async def disconnect(self, code: int) -> None:
        if self.poller is not None:
            poller, self.poller = self.poller, None
            await poller.leave(self)
