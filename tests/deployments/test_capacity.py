"""What is free on a server: neither promised, nor used by anything else, nor the system's."""

from __future__ import annotations

import msgspec
import pytest
from django.utils import timezone

from deployments.capacity import read_fleet
from deployments.models import Phase
from deployments.scheduler import ServerCapacity
from fleet.services import mark_lost, revoke_server
from tests.factories import GIB, make_facts, make_gpu, make_instance, make_load, make_server
from wire.engine import RuntimeKind
from wire.messages import RuntimeInfo

pytestmark = pytest.mark.django_db
NOW = timezone.now()


def only() -> ServerCapacity:
    (server,) = read_fleet(NOW).servers.values()
    return server


def free_gib() -> float:
    return round(only().free_bytes / GIB, 2)


def test_a_share_of_memory_is_the_systems() -> None:
    make_server(now=NOW, load=make_load(memory_available_bytes=16 * GIB))
    assert free_gib() == round(16 - 0.8, 2)


def test_what_other_programs_use_is_not_given_out() -> None:
    make_server(now=NOW, load=make_load(memory_available_bytes=3 * GIB))
    assert free_gib() == 3


def test_what_is_promised_counts_also_before_it_is_used_and_once_when_it_is() -> None:
    server = make_server(now=NOW, load=make_load(memory_available_bytes=8 * GIB))
    one = make_instance(server=server, now=NOW, memory_bytes=5 * GIB)
    assert free_gib() == 3
    one.used_memory_bytes = 4 * GIB
    one.save()
    assert free_gib() == 7
    one.phase = Phase.ENDED
    one.save()
    assert free_gib() == 8


def test_gpu_memory_is_free_of_promises_and_of_others() -> None:
    used = msgspec.structs.replace(make_gpu(1), memory_used_bytes=10 * GIB)
    server = make_server(now=NOW, load=make_load(devices=(make_gpu(0), used)))
    make_instance(server=server, now=NOW, gpu_indexes=[0], gpu_memory_bytes=6 * GIB)
    assert [(gpu.index, gpu.free_bytes // GIB) for gpu in only().gpus] == [(0, 18), (1, 14)]


def test_runtimes_and_labels_are_those_the_agent_reports() -> None:
    runtimes = (RuntimeInfo(kind=RuntimeKind.DOCKER, version="27"),)
    make_server(now=NOW, facts=make_facts(runtimes=runtimes), labels={"rack": "b2"})
    assert (only().docker, only().programs, only().labels) == (True, frozenset(), {"rack": "b2"})


def test_a_lost_server_is_closed_and_a_revoked_one_is_not_in_the_fleet() -> None:
    server = make_server(now=NOW)
    assert only().closed == ""
    mark_lost([server.pk], NOW)
    assert only().closed == "lost: not heard of"
    revoke_server(server, NOW)
    assert read_fleet(NOW).servers == {}


def test_the_fleet_costs_two_queries_however_large(django_assert_num_queries) -> None:
    for _ in range(4):
        make_instance(server=make_server(now=NOW), now=NOW)
    with django_assert_num_queries(2):
        assert len(read_fleet(NOW).servers) == 4
