"""Prometheus metrics of one gateway process: `stokehold_gateway_*`."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from gateway.meter import Usage

_PREFIX = "stokehold_gateway_"
_SECONDS = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
_BOUNDS = (*(str(bound) for bound in _SECONDS), "+Inf")
UNKNOWN_MODEL = "-"
"""Label of requests that named no model of ours: a client must not make time series."""


@dataclass(slots=True)
class _Times:
    """A histogram."""

    counts: list[int] = field(default_factory=lambda: [0] * len(_BOUNDS))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        seen, cumulated = 0, []
        for bound, count in zip(_BOUNDS, self.counts, strict=True):
            seen += count
            cumulated.append((bound, float(seen)))
        return cumulated


@dataclass(slots=True)
class _Model:
    statuses: Counter[int] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    duration: _Times = field(default_factory=_Times)
    ttft: _Times = field(default_factory=_Times)


class Metrics:
    """One registry a process. Requests are counted in plain numbers; Prometheus gets its own when it asks."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.in_flight: Callable[[], int] = int
        """Requests being served."""
        self.waiting: Callable[[], int] = int
        """Of these, for a turn at an engine."""
        self._models: dict[str, _Model] = {}
        self._upstream_errors: Counter[tuple[str, str]] = Counter()
        waiting = Gauge(_PREFIX + "waiting_requests", "Requests that wait: all engines are full", registry=registry)
        waiting.set_function(lambda: self.waiting())
        self.feed_connected = Gauge(_PREFIX + "feed_connected", "1: the link to the master is up", registry=registry)
        self.feed_age = Gauge(
            _PREFIX + "feed_age_seconds", "Since the master was last heard; -1: never", registry=registry
        )
        self.journal_backlog = Gauge(
            _PREFIX + "journal_backlog_batches", "Usage batches not acknowledged by the master", registry=registry
        )
        self.requests_not_kept: Callable[[], int] = int
        """By the request log, though their project wants it."""
        self.guards_passed_over: Callable[[], int] = int
        """Requests that went on without the word of their project's guard."""
        in_flight = Gauge(_PREFIX + "in_flight_requests", "Requests being served", registry=registry)
        in_flight.set_function(lambda: self.in_flight())
        self.shared_counters_up = Gauge(
            _PREFIX + "shared_counters_up",
            "Quotas are counted over all processes (0: by each alone)",
            registry=registry,
        )
        registry.register(self)

    def finished(self, model: str, status: int, usage: Usage, duration_s: float, ttft_s: float | None) -> None:
        """Count one request that has ended."""
        counted = self._models.get(model)
        if counted is None:
            counted = self._models[model] = _Model()
        counted.statuses[status] += 1
        counted.duration.add(duration_s)
        if ttft_s is not None:
            counted.ttft.add(ttft_s)
        total = counted.usage
        total.prompt_tokens += usage.prompt_tokens
        total.cached_tokens += usage.cached_tokens
        total.completion_tokens += usage.completion_tokens

    def upstream_failed(self, model: str, reason: str) -> None:
        """Count one try that failed at an engine."""
        self._upstream_errors[(model, reason)] += 1

    def text(self) -> bytes:
        """Exposition format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        requests = CounterMetricFamily(_PREFIX + "requests", "Requests by model and status", labels=["model", "status"])
        tokens = CounterMetricFamily(_PREFIX + "tokens", "Tokens by model and kind", labels=["model", "kind"])
        ttft = HistogramMetricFamily(
            _PREFIX + "time_to_first_token_seconds", "From the request to its first byte", labels=["model"]
        )
        duration = HistogramMetricFamily(_PREFIX + "request_duration_seconds", "Whole requests", labels=["model"])
        errors = CounterMetricFamily(
            _PREFIX + "upstream_errors", "Tries that failed at an engine", labels=["model", "reason"]
        )
        for name, model in self._models.items():
            for status, count in model.statuses.items():
                requests.add_metric([name, str(status)], count)
            tokens.add_metric([name, "prompt"], model.usage.prompt_tokens)
            tokens.add_metric([name, "cached"], model.usage.cached_tokens)
            tokens.add_metric([name, "completion"], model.usage.completion_tokens)
            ttft.add_metric([name], model.ttft.buckets(), model.ttft.total_s)
            duration.add_metric([name], model.duration.buckets(), model.duration.total_s)
        for (name, reason), count in self._upstream_errors.items():
            errors.add_metric([name, reason], count)
        dropped = CounterMetricFamily(_PREFIX + "requests_not_kept", "Requests that the request log had to drop")
        dropped.add_metric([], self.requests_not_kept())
        unguarded = CounterMetricFamily(
            _PREFIX + "unguarded_requests", "Requests that went on without their guard's word"
        )
        unguarded.add_metric([], self.guards_passed_over())
        yield from (requests, tokens, ttft, duration, errors, dropped, unguarded)
