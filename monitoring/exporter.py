"""`/metrics` of the master, in the Prometheus text format, read from the database at each scrape.

Who may read it: a staff session; `Authorization: Bearer $STOKEHOLD_METRICS_TOKEN` when that variable is set;
or, when it is not set, a scraper on the same machine (loopback, and not through a proxy).
"""

from __future__ import annotations

import hmac
import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from deployments import services as deployment_services
from deployments.models import Instance, Leader, Phase
from fleet.load import load_shares, node_status
from fleet.models import Gateway, Server
from monitoring.overview import live_deployments
from wire.versions import RELEASE

_LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


class MasterCollector(Collector):
    """What the master knows at `now`."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        yield InfoMetricFamily("stokehold_master", "Release of the master.", value={"release": RELEASE})
        yield from self._servers()
        yield from self._deployments()
        yield from self._gateways()
        yield from self._controller()

    def _servers(self) -> Iterator[GaugeMetricFamily]:
        servers = list(Server.objects.select_related("state", "desired"))
        by_status = GaugeMetricFamily("stokehold_servers", "Servers by status.", labels=["status"])
        for status, count in Counter(str(node_status(server, self.now)) for server in servers).items():
            by_status.add_metric([status], count)
        load = GaugeMetricFamily(
            "stokehold_server_load_ratio", "Load of a server, 0 to 1.", labels=["server", "resource"]
        )
        lag = GaugeMetricFamily(
            "stokehold_server_generation_lag", "Desired generations not yet observed.", labels=["server"]
        )
        seen = GaugeMetricFamily(
            "stokehold_server_last_seen_seconds", "Seconds since a server was heard of.", labels=["server"]
        )
        for server in servers:
            state, desired = getattr(server, "state", None), getattr(server, "desired", None)
            if server.revoked_at or state is None:
                continue
            for resource, share in load_shares(state.load).items():
                if share is not None:
                    load.add_metric([server.name, resource], share / 100)
            if desired is not None:
                lag.add_metric([server.name], max(desired.generation - state.observed_generation, 0))
            if state.last_seen_at:
                seen.add_metric([server.name], (self.now - state.last_seen_at).total_seconds())
        yield from (by_status, load, lag, seen)

    def _deployments(self) -> Iterator[GaugeMetricFamily]:
        rows = list(live_deployments())
        statuses = deployment_services.statuses(rows)
        ready = GaugeMetricFamily("stokehold_deployment_ready", "Ready instances.", labels=["deployment"])
        desired = GaugeMetricFamily("stokehold_deployment_desired", "Instances that should be.", labels=["deployment"])
        states = GaugeMetricFamily("stokehold_deployments", "Deployments by state.", labels=["state"])
        for row in rows:
            ready.add_metric([row.name], statuses[row.pk].ready)
            desired.add_metric([row.name], statuses[row.pk].desired)
        for state, count in Counter(str(statuses[row.pk].state) for row in rows).items():
            states.add_metric([state], count)
        instances = GaugeMetricFamily("stokehold_instances", "Live instances by observed state.", labels=["state"])
        live = Instance.objects.exclude(phase=Phase.ENDED).order_by()
        for state, count in Counter(live.values_list("state", flat=True)).items():
            instances.add_metric([state], count)
        yield from (states, ready, desired, instances)

    def _gateways(self) -> Iterator[GaugeMetricFamily]:
        requests = GaugeMetricFamily(
            "stokehold_gateway_requests_per_minute", "Requests in the last minute.", labels=["gateway"]
        )
        tokens = GaugeMetricFamily(
            "stokehold_gateway_tokens_per_minute", "Tokens in the last minute.", labels=["gateway"]
        )
        in_flight = GaugeMetricFamily("stokehold_gateway_in_flight", "Requests in flight.", labels=["gateway"])
        up = GaugeMetricFamily("stokehold_gateway_up", "1: connected to this master.", labels=["gateway"])
        for gateway in Gateway.objects.filter(revoked_at__isnull=True).select_related("state"):
            up.add_metric([gateway.name], node_status(gateway, self.now) == "online")
            state = getattr(gateway, "state", None)
            if state is not None:
                requests.add_metric([gateway.name], state.requests_per_minute)
                tokens.add_metric([gateway.name], state.tokens_per_minute)
                in_flight.add_metric([gateway.name], sum(state.in_flight.values()))
        yield from (up, requests, tokens, in_flight)

    def _controller(self) -> Iterator[GaugeMetricFamily]:
        leader = Leader.objects.filter(name="controller").first()
        if leader is None:
            return
        for name, words, moment in (
            ("renewed", "since the controller's lease was renewed", leader.renewed_at),
            ("pass", "since the controller's last complete pass", leader.ticked_at),
        ):
            if moment is not None:
                age_s = (self.now - moment).total_seconds()
                yield GaugeMetricFamily(f"stokehold_controller_{name}_age_seconds", f"Seconds {words}.", value=age_s)


@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """View of `/metrics`."""
    if not _may_read(request):
        text = "Metrics want a staff session, or 'Authorization: Bearer' with the value of STOKEHOLD_METRICS_TOKEN.\n"
        return HttpResponse(text, status=403, content_type="text/plain")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MasterCollector(timezone.now()))
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _may_read(request: HttpRequest) -> bool:
    user = getattr(request, "user", None)
    if user is not None and user.is_active and user.is_staff and user.has_perm("fleet.view_server"):
        return True
    token = os.environ.get("STOKEHOLD_METRICS_TOKEN", "")
    if token:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), token.encode())
    return request.META.get("REMOTE_ADDR") in _LOOPBACK and not getattr(request, "is_forwarded", False)
