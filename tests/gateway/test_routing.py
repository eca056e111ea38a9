"""Which instance gets a request."""

from __future__ import annotations

from collections import Counter

from gateway.routing import Balancer
from tests.gateway.master import make_target

TARGETS = tuple(make_target(port, "h") for port in (1, 2, 3))


def test_the_least_loaded_instance_is_chosen() -> None:
    balancer = Balancer()
    for _ in range(5):
        balancer.started("i-1")
        balancer.started("i-2")
    assert {balancer.choose(TARGETS, bytes([n]), 0.0) for n in range(50)} == {TARGETS[2]}


def test_load_is_even_over_many_requests() -> None:
    balancer = Balancer()
    for number in range(300):
        target = balancer.choose(TARGETS, str(number).encode(), 0.0)
        assert target is not None
        balancer.started(target.instance_id)
    assert max(balancer.in_flight.values()) - min(balancer.in_flight.values()) <= 2


def test_the_same_beginning_goes_to_the_same_instance_while_load_allows() -> None:
    balancer = Balancer()
    assert len({balancer.choose(TARGETS, b"once upon a time", 0.0) for _ in range(20)}) == 1
    spread = Counter(balancer.choose(TARGETS, str(n).encode(), 0.0) for n in range(300))
    assert min(spread.values()) > 50


def test_losing_an_instance_moves_only_its_own_conversations() -> None:
    balancer = Balancer()
    for number in range(100):
        prefix = str(number).encode()
        before = balancer.choose(TARGETS, prefix, 0.0)
        if before is not TARGETS[2]:
            assert balancer.choose(TARGETS[:2], prefix, 0.0) is before


def test_a_failing_instance_is_left_out_and_probed_by_one_request_at_a_time() -> None:
    balancer = Balancer()
    balancer.failed("i-1", 0.0)
    assert all(balancer.choose(TARGETS, bytes([n]), 0.1) is not TARGETS[0] for n in range(50))
    assert balancer.choose(TARGETS, b"", 0.6) is TARGETS[0]
    assert all(balancer.choose(TARGETS, bytes([n]), 0.6) is not TARGETS[0] for n in range(50))
    balancer.succeeded("i-1")
    assert any(balancer.choose(TARGETS, bytes([n]), 0.6) is TARGETS[0] for n in range(50))


def test_each_failure_makes_the_pause_longer_up_to_a_bound() -> None:
    balancer = Balancer()
    for _ in range(50):
        balancer.failed("i-1", 0.0)
    assert all(balancer.choose(TARGETS, bytes([n]), 9.9) is not TARGETS[0] for n in range(50))
    assert balancer.choose(TARGETS, b"", 10.0) is TARGETS[0]


def test_when_all_fail_one_is_tried_all_the_same() -> None:
    balancer = Balancer()
    for target in TARGETS:
        balancer.failed(target.instance_id, 0.0)
    assert balancer.choose(TARGETS, b"", 0.0) in TARGETS
    assert balancer.choose(TARGETS, b"", 0.0, {"i-1", "i-2"}) is TARGETS[2]
    assert balancer.choose(TARGETS, b"", 0.0, {"i-1", "i-2", "i-3"}) is None
    assert balancer.choose(TARGETS[:1], b"", 0.0) is TARGETS[0]
    assert balancer.choose((), b"", 0.0) is None


def test_counts_never_go_below_zero() -> None:
    balancer = Balancer()
    balancer.started("a")
    balancer.finished("a")
    balancer.finished("a")
    assert balancer.in_flight == {}
