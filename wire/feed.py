"""Messages on the link gateway <-> master: what gateways must know (a whole state, then deltas), and what they report.

Money is in nano-units of the installation's currency (10^-9): whole numbers, so that sums are exact.
"""

from __future__ import annotations

import msgspec

from wire.messages import Refused, Welcome, decode
from wire.versions import PROTOCOL, RELEASE

GATEWAY_LINK_PATH = "/link/gateway"

LATENCY_BOUNDS_MS = (5, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 180_000, 600_000)
"""Upper bounds of the histograms in a UsageRow; one more bucket holds what is longer."""

ENDPOINT_GROUPS = ("chat", "completions", "embeddings", "responses", "messages", "rerank", "tokenize", "audio")
"""What an engine may offer and a key may be limited to. `/v1/models` is open to every key."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """Nano-units per 1,000 tokens: 1 unit per million tokens is 1,000,000."""

    prompt: int = 0
    cached: int = 0  # of prompt tokens found in the engine's cache
    completion: int = 0

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Nano-units, rounded down once for the whole request."""
        fresh = max(0, prompt_tokens - cached_tokens)
        return (fresh * self.prompt + cached_tokens * self.cached + completion_tokens * self.completion) // 1000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Quota of a key, a project, or a project's use of one model; None: no limit. Days and months are UTC ones."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    max_tokens_per_request: int | None = None  # prompt and completion
    cost_per_month: int | None = None  # nano-units


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """Accounted on the master, all acknowledged batches included."""

    tokens_today: int = 0
    tokens_this_month: int = 0
    cost_this_month: int = 0  # nano-units


class ModelQuota(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one project's use of one model."""

    model: str
    limits: Limits
    used: Used = Used()


class RequestLog(msgspec.Struct, frozen=True, kw_only=True):
    """A project's wish to have its requests and answers kept (off by default: the field is None)."""

    retention_days: int
    redact: tuple[str, ...] = ()  # regular expressions; what they match is replaced


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """A service that sees a project's requests first (`gateway.guards` says what it is asked, and answers)."""

    url: str
    timeout_ms: int = 2000
    fail_open: bool = False
    """Requests go on when it does not answer."""


class FeedProject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    active: bool
    limits: Limits = Limits()
    used: Used = Used()
    model_quotas: tuple[ModelQuota, ...] = ()
    priority: int = 1
    """Weight in the queue when engines are full: a project of 4 is let through four times as often as one of 1."""
    request_log: RequestLog | None = None
    guard: Guard | None = None


class FeedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the gateway needs it; the secret itself is unknown to everyone but its holder."""

    id: str  # the 8 characters after `sk-stk-`
    secret_hash: str  # hex HMAC-SHA256(pepper, whole key)
    project_id: str
    name: str
    active: bool  # False: revoked
    expires_at: float | None  # Unix time
    models: tuple[str, ...] | None  # public names allowed; None: all
    endpoints: tuple[str, ...] | None = None  # of ENDPOINT_GROUPS; None: all
    networks: tuple[str, ...] = ()  # CIDR; empty: from anywhere
    limits: Limits = Limits()
    used: Used = Used()
    previous_hash: str = ""  # after a rotation: the secret before, good until `previous_until`
    previous_until: float = 0.0  # Unix time


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A ready instance behind a route."""

    instance_id: str
    server_id: str
    host_id: str
    port: int  # on the loopback of its server: direct when host_id is the gateway's own
    relay_addresses: tuple[str, ...]  # how to reach the relay of its server from another machine
    relay_port: int
    engine_model: str  # name the engine knows the model by
    slots: int | None = None  # requests it works on at once; None: not known


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenAI-compatible service outside: used as a target like an instance."""

    base_url: str  # ends before `/v1`-relative paths are added, e.g. https://api.example.com/v1
    api_key: str
    model: str  # name it knows the model by


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """A share of a route's requests, by weight, for another route."""

    route: str
    weight: int


class FeedRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Public model name -> where its requests go.

    A route has instances of its own (`targets`), or a provider outside, or names others by weight (`splits`: canary,
    A/B; a single one is an alias). When nothing of these can take a request before its first byte, `fallbacks` are
    tried in order. With nothing ready the model is known, but not ready: 503.
    """

    id: str  # = model name
    created: int  # Unix time
    targets: tuple[Target, ...] = ()
    splits: tuple[Split, ...] = ()
    fallbacks: tuple[str, ...] = ()  # ids of routes
    provider: Provider | None = None
    listed: bool = True  # in /v1/models, and a client may ask for it by name
    max_context_tokens: int | None = None
    reason: str = ""  # why there is no target, for the 503
    endpoints: tuple[str, ...] = ("chat", "completions", "tokenize")  # of ENDPOINT_GROUPS
    price: Price | None = None


class FeedSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """Whole state; first after each connect."""

    pepper: str  # hex
    projects: tuple[FeedProject, ...]
    keys: tuple[FeedKey, ...]
    routes: tuple[FeedRoute, ...]


class FeedDelta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """Changes since the message before on this connection: put these, drop those ids."""

    projects: tuple[FeedProject, ...] = ()
    keys: tuple[FeedKey, ...] = ()
    routes: tuple[FeedRoute, ...] = ()
    gone_projects: tuple[str, ...] = ()
    gone_keys: tuple[str, ...] = ()
    gone_routes: tuple[str, ...] = ()


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Summed usage of one hour x key x model x status within one batch."""

    hour: int  # Unix time of the start of the UTC hour
    project_id: str
    key_id: str
    model: str
    status: int  # HTTP status given to the client (499: client went away)
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    duration_ms: int  # summed
    ttft_ms: int  # summed over requests with a first token
    cost: int = 0  # nano-units, summed
    durations: tuple[int, ...] = ()  # requests by LATENCY_BOUNDS_MS; empty: not told
    ttfts: tuple[int, ...] = ()


class UsageBatch(msgspec.Struct, frozen=True, kw_only=True, tag="usage"):
    """Delivered until acknowledged; counted once by `batch_id` (unique over all gateways and time)."""

    batch_id: str
    rows: tuple[UsageRow, ...]


class UsageAck(msgspec.Struct, frozen=True, kw_only=True, tag="usage_ack"):
    batch_id: str


class GatewayHello(msgspec.Struct, frozen=True, kw_only=True, tag="gateway_hello"):
    host_id: str
    base_url: str
    protocol: int = PROTOCOL
    release: str = RELEASE


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True, tag="gateway_status"):
    """Every second: what this gateway may still send requests to, and what is in flight.

    An instance can be stopped without losing a request when no live gateway lists it in `routable` and its in-flight
    count is 0.
    """

    at: float
    routable: tuple[str, ...]  # instance ids
    in_flight: dict[str, int]  # instance id -> requests, zeros left out
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0


GatewayMessage = GatewayHello | GatewayStatus | UsageBatch
FeedMessage = Welcome | FeedSnapshot | FeedDelta | UsageAck | Refused

_gateway_decoder = msgspec.json.Decoder(GatewayMessage)
_feed_decoder = msgspec.json.Decoder(FeedMessage)


def decode_from_gateway(text: str | bytes) -> GatewayMessage:
    """Raises BadMessage."""
    message: GatewayMessage = decode(_gateway_decoder, text)
    return message


def decode_feed(text: str | bytes) -> FeedMessage:
    """Message on a gateway's link. Raises BadMessage."""
    message: FeedMessage = decode(_feed_decoder, text)
    return message
