"""The newest desired state this agent accepted: checked, and kept on disk whole."""

from __future__ import annotations

import re

import msgspec
import structlog

from agent.home import AgentHome, write_whole
from wire.certs import load_verify_key
from wire.envelope import Envelope, open_envelope
from wire.errors import BadMessage, WireError
from wire.join import NodeIdentity
from wire.messages import DesiredState, TailLogs

log = structlog.get_logger(__name__)
_INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class Acceptance:
    """Decides what this agent acts on. `rejected` says why the newest state was refused; empty: it was not."""

    def __init__(self, home: AgentHome, identity: NodeIdentity) -> None:
        self._home = home
        self._server_id = identity.node_id
        self._key = load_verify_key(identity.master_public_key_pem)
        self._nonces: dict[str, float] = {}
        self.state = DesiredState(server_id=identity.node_id, generation=0)
        self.accepted = False
        self.rejected = ""

    @property
    def in_force(self) -> DesiredState | None:
        """The state to work on; None before the first was accepted."""
        return self.state if self.accepted else None

    def load(self) -> None:
        """Take up the last accepted state from disk. Its signature is checked again; its age does not matter there."""
        try:
            envelope = msgspec.json.decode(self._home.desired_file.read_bytes(), type=Envelope)
            self.state = self._open(envelope, envelope.issued_at)
            self.accepted = True
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, WireError, OSError) as error:
            log.error("desired.on_disk_refused", error=str(error))

    def offer(self, envelope: Envelope, now: float) -> bool:
        """Accept a state that came over the link, or say in `rejected` why not. `now` is Unix time."""
        try:
            state = self._open(envelope, now)
        except WireError as error:
            self.rejected = f"{error.code}: {error.message}"
            log.warning("desired.refused", code=error.code, reason=error.message, generation=envelope.generation)
            return False
        try:
            write_whole(self._home.desired_file, msgspec.json.encode(envelope))
        except OSError as error:  # a full disk must not keep an engine from being stopped
            log.error("desired.not_kept", generation=state.generation, error=str(error))
        changed = state != self.state
        self.state, self.accepted, self.rejected = state, True, ""
        if changed:
            log.info("desired.accepted", generation=state.generation, instances=len(state.instances))
        return True

    def order(self, envelope: Envelope, now: float) -> TailLogs:
        """The order inside, once. Raises WireError for one that is not to be followed."""
        payload = open_envelope(self._key, envelope, purpose="order", server_id=self._server_id, now=now)
        try:
            order = msgspec.json.decode(payload, type=TailLogs)
        except msgspec.DecodeError as error:
            raise BadMessage(f"order not understood: {error}") from error
        self._nonces = {nonce: until for nonce, until in self._nonces.items() if until > now}
        if order.nonce in self._nonces:
            raise BadMessage("this order came before: refused")
        self._nonces[order.nonce] = envelope.expires_at + 600.0  # beyond the skew that is allowed
        return order

    def _open(self, envelope: Envelope, now: float) -> DesiredState:
        payload = open_envelope(
            self._key,
            envelope,
            purpose="desired",
            server_id=self._server_id,
            now=now,
            newest_generation=self.state.generation,
        )
        try:
            state = msgspec.json.decode(payload, type=DesiredState)
        except msgspec.DecodeError as error:
            raise BadMessage(f"desired state not understood: {error}") from error
        if state.server_id != envelope.server_id or state.generation != envelope.generation:
            raise BadMessage("the desired state and its envelope do not agree")
        ids = [spec.instance_id for spec in state.instances]
        if len(set(ids)) != len(ids) or not all(_INSTANCE_ID.fullmatch(instance_id) for instance_id in ids):
            raise BadMessage("the desired state has instance ids that cannot be used")
        return state
