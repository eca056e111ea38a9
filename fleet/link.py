"""The link of one agent: a websocket on the master's TLS port.

The agent says hello, reports, and beats; the master sends its signed desired state on connect and whenever it rises.
Nothing here waits for the database but the check of who it is: `fleet.feed` writes and watches for all links.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import Error as DatabaseFailure
from django.utils import timezone

from fleet.ca import signing_key
from fleet.errors import AgentUnreachable, FleetError, Revoked
from fleet.feed import RESEND_AFTER_S, feed
from fleet.models import Role
from fleet.reports import ServerReport
from fleet.services import authenticate_node
from wire.envelope import Envelope, seal
from wire.errors import BadMessage, WireError
from wire.messages import (
    Cache,
    Desired,
    Hello,
    LogTail,
    Metrics,
    Observed,
    Order,
    Refused,
    TailLogs,
    Welcome,
    decode_from_agent,
    encode,
)
from wire.versions import OLDEST_PROTOCOL, PROTOCOL, speaks

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 900_000  # daphne itself cuts above 1 MiB, without a word
HELLO_WITHIN_S = 10.0
MAX_GENERATION = 2**53
CLOSE_REFUSED = 4403
HEARS = ("cache",)
CLOSE_BAD_MESSAGE = 4400


class NodeLink(AsyncWebsocketConsumer):
    """What links of agents and gateways share: the check at the door, refusing, and no need of a channel layer."""

    channel_layer_alias = "none: a link must live without one"
    role: Role
    node_id = ""
    closed = False

    async def dispatch(self, message: dict[str, Any]) -> None:
        """As Channels does it, without its trip to a thread per message: no message here touches the database."""
        handler: Callable[[dict[str, Any]], Any] = getattr(self, message["type"].replace(".", "_"))
        await handler(message)

    async def connect(self) -> None:
        await self.accept()
        try:
            node = await feed.auth_threads.run(authenticate_node, self._bearer(), self.role, timezone.now())
        except Revoked as error:
            await self.refuse(error.code, error.message, error.remedy, final=True)
        except WireError as error:
            await self.refuse(error.code, error.message, error.remedy, final=True)
        except (DatabaseFailure, OSError) as error:
            log.warning("link.not_checked", role=self.role, error=repr(error))
            await self.refuse("unavailable", "the master's database does not answer", "Nothing: try again shortly.")
        else:
            self.node_id = node.pk
            await self.send(encode(Welcome(node_id=node.pk, hears=HEARS)))
            await self.opened()

    async def opened(self) -> None:
        """The node is who it says it is."""
        raise NotImplementedError

    async def refuse(self, code: str, message: str, remedy: str = "", *, final: bool = False) -> None:
        """Say why, and close."""
        if self.closed:
            return
        self.closed = True
        log.info("link.refused", role=self.role, node=self.node_id, code=code, message=message)
        await self.send(encode(Refused(code=code, message=message, remedy=remedy, final=final)))
        await self.close(CLOSE_BAD_MESSAGE if code == BadMessage.code else CLOSE_REFUSED)

    async def refuse_revoked(self) -> None:
        await self.refuse(Revoked.code, "this node was revoked", Revoked.remedy, final=True)

    async def refuse_replaced(self) -> None:
        """Final, so that two agents with one identity do not throw each other out in turns."""
        await self.refuse(
            "replaced",
            "a newer link of this node came up",
            "Check that no two agents use a copy of one home folder.",
            final=True,
        )

    async def refuse_protocol(self, protocol: int) -> None:
        older = protocol < OLDEST_PROTOCOL
        await self.refuse(
            "protocol_too_old" if older else "protocol_too_new",
            f"this node speaks protocol {protocol}, the master {OLDEST_PROTOCOL} to {PROTOCOL}",
            "Update the node to the master's release." if older else "Update the master first, then the node.",
            final=True,
        )

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        data = text_data if text_data is not None else bytes_data or b""
        if self.closed or not self.node_id:
            return
        if len(data) > MAX_MESSAGE_BYTES:
            await self.refuse(BadMessage.code, f"a message of {len(data)} bytes", f"At most {MAX_MESSAGE_BYTES}.")
            return
        try:
            await self.heard(data)
        except WireError as error:
            await self.refuse(error.code, error.message, error.remedy)

    async def heard(self, data: str | bytes) -> None:
        """One message. May raise WireError."""
        raise NotImplementedError

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        self.closed = True
        await self.disconnect(message["code"])
        raise StopConsumer

    def _bearer(self) -> str:
        for name, value in self.scope["headers"]:
            if name == b"authorization":
                return str(value.decode("latin-1"))
        return ""


class AgentLink(NodeLink):
    """`/link/agent`"""

    role = Role.AGENT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connected_since = dt.datetime.min.replace(tzinfo=dt.UTC)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.recorded = False  # the row was seen with this link's time
        self._greeted = False
        self._hello_due: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._sent_generation = -1
        self._sent_at = 0.0
        self._accepted_generation = 0
        self._last_observed: Observed | None = None
        self._answers: dict[str, asyncio.Future[LogTail]] = {}

    @property
    def server_id(self) -> str:
        return self.node_id

    async def opened(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.connected_since = timezone.now()
        self._hello_due = self.loop.call_later(HELLO_WITHIN_S, self._no_hello)
        replaced = feed.attach(self)
        if replaced is not None:
            await replaced.refuse_replaced()

    async def heard(self, data: str | bytes) -> None:
        message = decode_from_agent(data)
        if isinstance(message, Hello):
            await self._hello(message)
        elif not self._greeted:
            raise BadMessage("the first message on a link must be hello")
        elif isinstance(message, Observed):
            self._observed(message)
        elif isinstance(message, Metrics):
            moment = timezone.now()
            feed.report(ServerReport(self.node_id, moment, metrics=message, metrics_at=moment), soon=False)
        elif isinstance(message, Cache):
            feed.report(ServerReport(self.node_id, timezone.now(), cache=message), soon=True)
        else:
            answer = self._answers.get(message.nonce)
            if answer is not None and not answer.done():
                answer.set_result(message)

    async def _hello(self, hello: Hello) -> None:
        if not speaks(hello.protocol):
            await self.refuse_protocol(hello.protocol)
            return
        _check_generation(hello.generation)
        self._greeted = True
        self._accepted_generation = hello.generation
        if self._hello_due is not None:
            self._hello_due.cancel()
        log.info("agent.connected", server=self.node_id, release=hello.release, generation=hello.generation)
        report = ServerReport(self.node_id, timezone.now(), connected_since=self.connected_since, hello=hello)
        feed.report(report, soon=True)
        feed.look_soon()

    def _observed(self, observed: Observed) -> None:
        _check_generation(observed.generation)
        self._accepted_generation = observed.generation
        changed = observed != self._last_observed
        self._last_observed = observed
        feed.report(ServerReport(self.node_id, timezone.now(), observed=observed), soon=changed)

    # -------------------------------------------------------------------------------------------- desired state

    def wants(self, generation: int) -> bool:
        """Whether the newest state must be sent: it rose, or the agent has not taken it over for a while."""
        if self.closed or not self._greeted:
            return False
        if generation > self._sent_generation:
            return True
        late = time.monotonic() - self._sent_at > RESEND_AFTER_S
        return late and self._accepted_generation < generation

    async def send_desired(self, envelope: Envelope) -> None:
        if self.closed:
            return
        self._sent_generation = envelope.generation
        self._sent_at = time.monotonic()
        await self.send(encode(Desired(envelope=envelope)))

    # -------------------------------------------------------------------------------------------- orders

    async def tail_logs(self, instance_id: str, lines: int, timeout_s: float) -> LogTail:
        """Last `lines` lines of an instance's output.

        Raises:
            AgentUnreachable: no answer in time, or the link broke.
        """
        order = TailLogs(nonce=secrets.token_hex(16), instance_id=instance_id, lines=lines)
        sealed = seal(
            signing_key(), order, purpose="order", server_id=self.node_id, generation=0, now=time.time(), ttl_s=30.0
        )
        answer: asyncio.Future[LogTail] = asyncio.get_running_loop().create_future()
        self._answers[order.nonce] = answer
        try:
            await self.send(encode(Order(envelope=sealed)))
            return await asyncio.wait_for(answer, timeout_s)
        except (TimeoutError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not answer.cancelled():
                raise
            raise AgentUnreachable(f"the agent of {self.node_id} did not answer within {timeout_s:g} s") from error
        finally:
            del self._answers[order.nonce]

    # -------------------------------------------------------------------------------------------- end

    def _no_hello(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(
            self.refuse(BadMessage.code, f"no hello within {HELLO_WITHIN_S:g} s")
        )

    async def disconnect(self, code: int) -> None:
        if self._hello_due is not None:
            self._hello_due.cancel()
        if self._closing is not None:
            with suppress(FleetError):
                await self._closing
        for answer in self._answers.values():
            answer.cancel()
        if self.node_id:
            feed.detach(self)
            log.info("agent.disconnected", server=self.node_id, code=code)


def _check_generation(generation: int) -> None:
    if not 0 <= generation < MAX_GENERATION:
        raise BadMessage(f"{generation} is no generation")
