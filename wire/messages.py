"""Messages on the links agent <-> master and gateway <-> master: JSON text frames, tagged by `type`.

Whole states, never commands: any message may be lost, and the next one still says everything.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from wire.engine import EngineSpec, RuntimeKind
from wire.envelope import Envelope
from wire.errors import BadMessage
from wire.manifest import Manifest
from wire.versions import PROTOCOL, RELEASE

AGENT_LINK_PATH = "/link/agent"
BLOB_PATH = "/api/v1/blobs/{sha256}"
JOIN_PATH = "/api/v1/join"
JOIN_CA_PATH = "/api/v1/join/ca"


class InstanceState(StrEnum):
    """What an agent sees of an instance. Every state but READY, STOPPED and FAILED has a deadline at the agent."""

    PENDING = "pending"  # known, nothing done yet
    FETCHING = "fetching"  # model files (or the image) are on their way
    STARTING = "starting"  # engine runs, is not ready yet
    READY = "ready"
    UNHEALTHY = "unhealthy"  # was ready, does not answer its check now
    BACKOFF = "backoff"  # died; will be started again at `retry_at`
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"  # cannot be run here; the reason says why. Tried again only when the spec changes


# ------------------------------------------------------------------------------------------------ join (HTTPS)


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST JOIN_PATH`. The private key never leaves the node."""

    token: str
    name: str
    public_key_pem: str
    """Ed25519: the node signs its tokens with it."""
    tls_public_key_pem: str
    """EC: the certificate is made for it."""
    role: str = "agent"  # agent | gateway
    addresses: tuple[str, ...] = ()
    """Host names and IP addresses others can reach this node at; become SANs of its certificate."""
    release: str = RELEASE


class JoinReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a JoinRequest, 201. Errors are RFC 9457 problems."""

    node_id: str
    name: str
    certificate_pem: str
    ca_pem: str
    signing_public_key_pem: str
    """Ed25519 key that signs desired states."""


# ------------------------------------------------------------------------------------------------ desired state


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that should run on a server."""

    instance_id: str
    deployment: str
    revision: int
    runtime: RuntimeKind
    engine: EngineSpec
    model: Manifest
    model_name: str
    """`name:version` of the model version, for people."""
    spec_hash: str
    shared_dir: str = ""
    """Folder on servers in which the files lie already (shared storage). Where it does not hold them, and where this is
    empty, they are fetched."""


class HeldModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model version that a server should have, whether an instance needs it now or not."""

    model: Manifest
    model_name: str
    shared_dir: str = ""
    """As in `InstanceSpec`."""


class CachePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a server keeps and fetches model files. None: no bound of the master's."""

    quota_bytes: int | None = None
    keep_versions: int | None = None
    """Of each model, at most so many versions that nothing uses are kept."""
    download_bytes_per_second: int | None = None
    upload_bytes_per_second: int | None = None
    scrub_every_s: float | None = None
    """Each file is read again, and mended, when it was not for so long. None: never."""
    scrub_bytes_per_second: int | None = None


class DesiredState(msgspec.Struct, frozen=True, kw_only=True):
    """All that should run on one server. Travels as the payload of a signed Envelope."""

    server_id: str
    generation: int
    instances: tuple[InstanceSpec, ...] = ()
    revoked_certificates: tuple[str, ...] = ()
    """Serial numbers (hex) of nodes' certificates that a relay refuses although they have not expired."""
    held: tuple[HeldModel, ...] = ()
    """Fetched ahead and never evicted: pinned, or about to be needed by a rollout."""
    cache: CachePolicy = CachePolicy()


# ------------------------------------------------------------------------------------------------ agent -> master


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as NVML reports it."""

    index: int
    name: str
    uuid: str
    memory_total_bytes: int
    memory_used_bytes: int
    utilization_percent: float


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Load of a server at one moment."""

    cpu_percent: float  # of all cores together, 0..100
    memory_total_bytes: int
    memory_available_bytes: int
    disk_total_bytes: int  # of the file system with the agent's home
    disk_free_bytes: int
    devices: tuple[Device, ...] = ()
    load_1m: float = 0.0


class RuntimeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that works on this server now."""

    kind: RuntimeKind
    version: str
    images: tuple[str, ...] = ()  # docker: repo tags present
    programs: tuple[str, ...] = ()  # process: names that can be started


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while an agent runs."""

    hostname: str
    host_id: str
    """Same for all nodes that share one loopback (`wire.join.host_id`): a gateway goes straight to engines there."""
    os: str
    cpu_model: str
    cpu_count: int
    memory_bytes: int
    runtimes: tuple[RuntimeInfo, ...]
    relay_port: int
    addresses: tuple[str, ...]


class LastExit(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine's earlier attempt ended; kept over the restart that follows it."""

    attempt: int
    exit_code: int | None  # None: ended unseen
    at: float  # Unix time
    ran_s: float
    command: tuple[str, ...]  # as resolved
    lines: tuple[str, ...]  # last lines of its output, oldest first
    cause: str = ""  # from the spec's failure_hints
    remedy: str = ""


class ObservedInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as the agent sees it now."""

    instance_id: str
    spec_hash: str
    state: InstanceState
    reason: str = ""
    since: float = 0.0  # Unix time of the last change of state
    runtime: RuntimeKind = RuntimeKind.AUTO  # the one in use; AUTO: not chosen yet
    unit_id: str = ""  # container id, or pid
    port: int = 0  # on loopback of that server; 0: none yet
    restarts: int = 0
    retry_at: float = 0.0
    progress: float = 0.0  # 0..1 of FETCHING
    memory_bytes: int = 0
    exits: tuple[LastExit, ...] = ()  # newest last, at most 5


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First message of an agent after each connect."""

    facts: Facts
    generation: int  # last accepted desired state; 0: none
    protocol: int = PROTOCOL
    release: str = RELEASE


class Observed(msgspec.Struct, frozen=True, kw_only=True, tag="observed"):
    """Whole observed state; sent on each change, and with every heartbeat."""

    generation: int  # desired state it was working on
    instances: tuple[ObservedInstance, ...]
    rejected: str = ""  # why the newest desired state was refused; empty: it was accepted


class Metrics(msgspec.Struct, frozen=True, kw_only=True, tag="metrics"):
    """Heartbeat with load, every 5 s. Renews the server's lease."""

    at: float
    load: Load


class CachedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model version on a server, or on its way there."""

    digest: str
    model_name: str
    size_bytes: int
    progress: float = 1.0
    """Share of its bytes that is here; 1.0: whole and checked."""
    used_at: float = 0.0  # Unix time
    in_use: bool = False  # an instance needs it
    held: bool = False
    problem: str = ""  # why it does not come
    from_peers_bytes: int = 0  # since the agent started
    from_master_bytes: int = 0
    verified_at: float = 0.0  # Unix time when all of it had been read again; 0.0: not since it came


class Cache(msgspec.Struct, frozen=True, kw_only=True, tag="cache"):
    """All model files of a server; sent after hello and on each change, to masters that hear it (`Welcome.hears`)."""

    models: tuple[CachedModel, ...]
    used_bytes: int
    quota_bytes: int | None = None
    disk_free_bytes: int = 0
    alarm: str = ""  # what a person has to see to: too little room


class LogTail(msgspec.Struct, frozen=True, kw_only=True, tag="log_tail"):
    """Answer to a TailLogs order."""

    nonce: str
    instance_id: str
    lines: tuple[str, ...]
    error: str = ""


# ------------------------------------------------------------------------------------------------ master -> agent


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """First message of the master on any link."""

    node_id: str
    release: str = RELEASE
    protocol: int = PROTOCOL
    heartbeat_s: float = 5.0
    hears: tuple[str, ...] = ()
    """Tags of messages that came after the first release of this protocol, and that this master understands."""


class Desired(msgspec.Struct, frozen=True, kw_only=True, tag="desired"):
    """A signed DesiredState. Sent on connect and whenever the generation rises."""

    envelope: Envelope


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """A signed one-off order; the payload is a TailLogs."""

    envelope: Envelope


class TailLogs(msgspec.Struct, frozen=True, kw_only=True, tag="tail_logs"):
    """Payload of an Order: send the last `lines` lines of an instance's output."""

    nonce: str
    instance_id: str
    lines: int = 200


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Last message before the master closes a link: why, and what to do."""

    code: str
    message: str
    remedy: str = ""
    final: bool = False  # True: do not come back without new credentials


AgentMessage = Hello | Observed | Metrics | LogTail | Cache
MasterMessage = Welcome | Desired | Order | Refused

_encoder = msgspec.json.Encoder()
_agent_decoder = msgspec.json.Decoder(AgentMessage)
_master_decoder = msgspec.json.Decoder(MasterMessage)


def encode(message: msgspec.Struct) -> str:
    """JSON text of a message."""
    return _encoder.encode(message).decode()


def decode(decoder: msgspec.json.Decoder[Any], text: str | bytes) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(f"message not understood: {error}") from error


def decode_from_agent(text: str | bytes) -> AgentMessage:
    """Raises BadMessage."""
    message: AgentMessage = decode(_agent_decoder, text)
    return message


def decode_from_master(text: str | bytes) -> MasterMessage:
    """Message on an agent's link. Raises BadMessage."""
    message: MasterMessage = decode(_master_decoder, text)
    return message
