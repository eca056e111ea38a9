"""The scheduler: what fits where, which place is best, and a reason for every server refused."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.scheduler import (
    Fleet,
    Gpu,
    Placement,
    Refusal,
    Request,
    ServerCapacity,
    Shape,
    explain,
    place,
    place_many,
)
from wire.engine import RuntimeKind

GIB = 1 << 30
ON_CPU = (Shape(0, 4 * GIB),)
AUTO = (Shape(1, GIB, 20 * GIB), Shape(2, GIB, 10 * GIB), Shape(4, GIB, 5 * GIB), Shape(0, 20 * GIB))


def server(name: str, free_gib: float = 16, gpus_gib: tuple[float, ...] = (), **fields: Any) -> ServerCapacity:
    gpus = tuple(Gpu(index, 24 * GIB, int(free * GIB)) for index, free in enumerate(gpus_gib))
    values = {"programs": frozenset({"llama-server"})} | fields
    return ServerCapacity(f"id-{name}", name, 64 * GIB, int(free_gib * GIB), gpus, **values)


def request(shapes: tuple[Shape, ...] = ON_CPU, **fields: Any) -> Request:
    return Request(shapes=shapes, program="llama-server", **fields)


def refused(wanted: Request, *servers: ServerCapacity) -> dict[str, str]:
    answer = place(wanted, Fleet.of(*servers))
    assert isinstance(answer, Refusal), answer
    return dict(answer.reasons)


def placed(wanted: Request, *servers: ServerCapacity) -> Placement:
    answer = place(wanted, Fleet.of(*servers))
    assert isinstance(answer, Placement), answer
    return answer


def test_the_emptiest_server_is_chosen_and_the_choice_says_why() -> None:
    found = placed(request(), server("a", 8), server("b", 16))
    assert found.server_name == "b"
    assert found.memory_bytes == 4 * GIB
    assert found.reason == "on the CPU: needs 4.0 GiB, 16.0 GiB of memory free; holds none of it yet"


def test_equal_servers_are_chosen_by_name_so_that_it_is_the_same_every_time() -> None:
    assert placed(request(), server("b"), server("a")).server_name == "a"


def test_siblings_are_spread_before_memory_counts() -> None:
    assert placed(request(occupied={"id-b": 1}), server("a", 5), server("b", 60)).server_name == "a"


def test_many_are_spread_evenly() -> None:
    found = place_many(request(), 6, Fleet.of(server("a", 30), server("b", 20), server("c", 16)))
    names = [one.server_name for one in found.placements]
    assert found.refusal is None
    assert sorted(names) == ["a", "a", "b", "b", "c", "c"]


def test_many_are_placed_as_one_by_one() -> None:
    fleet = Fleet.of(server("a", 30, (24, 12)), server("b", 9, (24,)), server("c", 40))
    for shapes in (ON_CPU, AUTO):
        together = place_many(request(shapes), 9, fleet)
        singly, now, occupied = [], fleet, {}
        while isinstance(one := place(request(shapes, occupied=occupied), now), Placement) and len(singly) < 9:
            singly.append(one)
            now = now.release(one.server_id, -one.memory_bytes, one.gpu_indexes, -one.gpu_memory_bytes)
            occupied = {**occupied, one.server_id: occupied.get(one.server_id, 0) + 1}
        assert list(together.placements) == singly
        assert together.fleet == now


def test_what_does_not_fit_is_told_with_the_number_that_do() -> None:
    found = place_many(request(), 5, Fleet.of(server("a", 8), server("b", 5)))
    assert len(found.placements) == 3
    assert found.refusal is not None
    assert found.refusal.reasons == {
        "a": "not enough memory: needs 4.0 GiB, 0.0 GiB of 64.0 GiB free",
        "b": "not enough memory: needs 4.0 GiB, 1.0 GiB of 64.0 GiB free",
    }


def test_none_asked_for_is_no_refusal() -> None:
    assert place_many(request(), 0, Fleet.of()).refusal is None


@pytest.mark.parametrize(
    ("wanted", "candidate", "reason"),
    [
        (request(), server("a", 2), "not enough memory: needs 4.0 GiB, 2.0 GiB of 64.0 GiB free"),
        (request(), server("a", closed="cordoned"), "cordoned"),
        (request(), server("a", closed="being drained"), "being drained"),
        (request(), server("a", closed="lost: not heard of"), "lost: not heard of"),
        (request(servers=frozenset({"b"})), server("a"), "not among the servers asked for"),
        (request(labels={"rack": "b2"}), server("a"), "label differs: wants rack=b2, has none"),
        (request(labels={"rack": "b2"}), server("a", labels={"rack": "b1"}), "label differs: wants rack=b2, has b1"),
        (request(avoid={"id-a": "kept failing there: bad"}), server("a"), "kept failing there: bad"),
        (request(runtime=RuntimeKind.DOCKER), server("a"), "no Docker there"),
        (request(runtime=RuntimeKind.PROCESS), server("a", programs=frozenset()), "no program llama-server there"),
        (request(), server("a", programs=frozenset()), "neither Docker nor a program llama-server there"),
        (request((Shape(2, GIB, GIB),)), server("a", gpus_gib=(24,)), "not enough GPUs: needs 2, has 1"),
        (
            request((Shape(2, GIB, 20 * GIB),)),
            server("a", gpus_gib=(24, 12)),
            "not enough GPU memory: needs 20.0 GiB on each of 2, 1 have it (most free: 24.0 GiB)",
        ),
    ],
)
def test_a_refused_server_has_its_reason(wanted: Request, candidate: ServerCapacity, reason: str) -> None:
    assert refused(wanted, candidate) == {"a": reason}
    assert explain(wanted, Fleet.of(candidate)) == {"a": reason}


def test_docker_will_do_where_the_program_is_missing() -> None:
    assert placed(request(), server("a", programs=frozenset(), docker=True)).server_name == "a"


def test_as_few_gpus_as_hold_it_are_taken_and_the_tightest_of_them() -> None:
    found = placed(request(AUTO), server("a", gpus_gib=(24, 21, 24, 8)))
    assert found.gpu_indexes == (1,)
    assert found.gpu_memory_bytes == 20 * GIB
    assert placed(request(AUTO), server("a", gpus_gib=(12, 6, 11, 6))).gpu_indexes == (0, 2)


def test_the_cpu_is_a_way_out_only_where_no_server_has_a_gpu() -> None:
    assert placed(request(AUTO), server("a", 30)).gpu_indexes == ()
    reasons = refused(request(AUTO), server("a", 30), server("b", 30, (2, 2)))
    assert reasons["a"] == "not enough GPUs: needs 1, has 0"


def test_a_server_is_told_what_its_gpus_lack_not_that_more_of_them_would_help() -> None:
    reasons = refused(request(AUTO), server("a", gpus_gib=(18,)))
    assert reasons["a"] == "not enough GPU memory: needs 20.0 GiB on each of 1, 0 have it (most free: 18.0 GiB)"


def test_what_is_said_to_fit_is_where_it_may_go() -> None:
    """A CPU is no way out beside GPUs: the explanation must not call it one."""
    fleet = Fleet.of(server("cpu", 60), server("gpu", 60, (2,)), server("big", 60, (24,)))
    answers = explain(request(AUTO), fleet)
    assert answers["big"] == ""
    assert answers["cpu"] == "not enough GPUs: needs 1, has 0"
    assert answers["gpu"].startswith("not enough GPU memory")


def test_the_summary_counts_the_kinds_of_reasons() -> None:
    assert Refusal({}).summary() == "there is no server"
    many = Refusal({"a": "cordoned", "b": "not enough memory: needs 4", "c": "not enough memory: needs 5"})
    assert many.summary() == "fits on none of 3 servers: 2 x not enough memory, 1 x cordoned"
    assert Refusal({"a": "cordoned"}).summary() == "does not fit on the only server: cordoned"
    assert Refusal({"a": "full: needs 2, 1 free"}).summary().endswith("only server: full: needs 2, 1 free")


def test_what_is_released_is_free_again() -> None:
    full = Fleet.of(server("a", 1, (2, 24)))
    wanted = request((Shape(2, 4 * GIB, 10 * GIB),))
    assert isinstance(place(wanted, full), Refusal)
    assert isinstance(place(wanted, full.release("id-a", 4 * GIB, (0,), 10 * GIB)), Placement)
    assert full.release("elsewhere", GIB, (), 0) is full
