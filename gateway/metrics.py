"""Prometheus metrics of one gateway process: `stokehold_gateway_*`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.meter import Usage

_SECONDS = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
UNKNOWN_MODEL = "-"
"""Label of requests that named no model of ours: a client must not make time series."""


class Metrics:
    """One registry a process; children are kept, because looking them up costs more than counting."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        prefix = "stokehold_gateway_"
        self._requests = Counter(
            prefix + "requests", "Requests by model and status", ["model", "status"], registry=registry
        )
        self._tokens = Counter(prefix + "tokens", "Tokens by model and kind", ["model", "kind"], registry=registry)
        self._ttft = Histogram(
            prefix + "time_to_first_token_seconds",
            "From the request to the first byte of its answer",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            prefix + "request_duration_seconds", "Whole requests", ["model"], buckets=_SECONDS, registry=registry
        )
        self._upstream_errors = Counter(
            prefix + "upstream_errors", "Tries that failed at an engine", ["model", "reason"], registry=registry
        )
        self.in_flight = Gauge(prefix + "in_flight_requests", "Requests being served", registry=registry)
        self.feed_connected = Gauge(prefix + "feed_connected", "1: the link to the master is up", registry=registry)
        self.feed_age = Gauge(
            prefix + "feed_age_seconds", "Since the master was last heard; -1: never", registry=registry
        )
        self.journal_backlog = Gauge(
            prefix + "journal_backlog_batches", "Usage batches not acknowledged by the master", registry=registry
        )
        self._children: dict[tuple[str, int], Counter] = {}
        self._by_model: dict[str, tuple[Histogram, Histogram, Counter, Counter, Counter]] = {}

    def finished(self, model: str, status: int, usage: Usage, duration_s: float, ttft_s: float | None) -> None:
        """Count one request that has ended."""
        child = self._children.get((model, status))
        if child is None:
            child = self._children[(model, status)] = self._requests.labels(model, str(status))
        child.inc()
        kept = self._by_model.get(model)
        if kept is None:
            kept = self._by_model[model] = (
                self._duration.labels(model),
                self._ttft.labels(model),
                self._tokens.labels(model, "prompt"),
                self._tokens.labels(model, "cached"),
                self._tokens.labels(model, "completion"),
            )
        duration, ttft, prompt, cached, completion = kept
        duration.observe(duration_s)
        if ttft_s is not None:
            ttft.observe(ttft_s)
        if usage.prompt_tokens:
            prompt.inc(usage.prompt_tokens)
        if usage.cached_tokens:
            cached.inc(usage.cached_tokens)
        if usage.completion_tokens:
            completion.inc(usage.completion_tokens)

    def upstream_failed(self, model: str, reason: str) -> None:
        self._upstream_errors.labels(model, reason).inc()

    def text(self) -> bytes:
        """Exposition format."""
        return generate_latest(self.registry)
