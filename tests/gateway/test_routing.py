"""Which instance gets a request."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import ERRORS_IN_A_ROW, Balancer, FindRoute, RetryBudget, resolve
from tests.gateway.master import make_route, make_target
from wire.feed import FeedRoute, Split

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


def test_a_busy_instance_with_a_free_slot_keeps_its_conversations() -> None:
    wide = tuple(make_target(port, "h", slots=8) for port in (1, 2, 3))
    balancer = Balancer()
    home = balancer.choose(wide, b"once upon a time", 0.0)
    assert home is not None
    for _ in range(7):
        balancer.started(home.instance_id)
    assert balancer.choose(wide, b"once upon a time", 0.0) is home
    balancer.started(home.instance_id)
    assert balancer.choose(wide, b"once upon a time", 0.0) is not home


def test_an_instance_that_errs_again_and_again_is_left_out_until_it_answers() -> None:
    balancer = Balancer()
    for _ in range(ERRORS_IN_A_ROW - 1):
        balancer.erred("i-1", 0.0)
    assert any(balancer.choose(TARGETS, bytes([n]), 0.1) is TARGETS[0] for n in range(50))
    balancer.erred("i-1", 0.0)
    assert all(balancer.choose(TARGETS, bytes([n]), 0.1) is not TARGETS[0] for n in range(50))
    balancer.succeeded("i-1")
    assert any(balancer.choose(TARGETS, bytes([n]), 0.1) is TARGETS[0] for n in range(50))


def test_errors_of_all_leave_at_least_half_of_them_in() -> None:
    balancer = Balancer()
    for target in TARGETS:
        for _ in range(20):
            balancer.erred(target.instance_id, 0.0)
    assert len({balancer.choose(TARGETS, bytes([n]), 0.1) for n in range(100)}) >= 2


def test_retries_are_bounded_by_a_share_of_requests() -> None:
    budget, retried = RetryBudget(), 0
    for number in range(1000):
        budget.request()
        retried += budget.may_retry(10.0 + number / 1000)
    assert 200 <= retried <= 200 + RetryBudget.MOST + RetryBudget.FLOOR_PER_S
    assert budget.may_retry(20.0)


# ------------------------------------------------------------------------------------------------ routes


def routes(*given: FeedRoute) -> FindRoute:
    by_id = {route.id: route for route in given}
    return by_id.get


def names(found: list[FeedRoute]) -> list[str]:
    return [route.id for route in found]


BLUE, GREEN = make_route("blue", TARGETS[0]), make_route("green", TARGETS[1])


def test_an_alias_leads_to_its_route() -> None:
    find = routes(make_route("public", splits=(Split(route="blue", weight=1),)), BLUE)
    assert names(resolve(find, "public", 0.5)) == ["blue"]
    assert resolve(find, "nowhere", 0.5) == []


def test_shares_follow_their_weights_and_the_other_is_next() -> None:
    splits = (Split(route="blue", weight=90), Split(route="green", weight=10))
    find = routes(make_route("public", splits=splits), BLUE, GREEN)
    first = Counter(names(resolve(find, "public", n / 1000))[0] for n in range(1000))
    assert first == {"blue": 900, "green": 100}
    assert set(names(resolve(find, "public", 0.0))) == {"blue", "green"}


def test_a_session_stays_with_its_share() -> None:
    splits = (Split(route="blue", weight=1), Split(route="green", weight=1))
    find = routes(make_route("public", splits=splits), BLUE, GREEN)
    for number in range(50):
        session = f"s{number}".encode()
        assert len({names(resolve(find, "public", draw / 10, session))[0] for draw in range(10)}) == 1
    spread = Counter(names(resolve(find, "public", 0.0, f"s{n}".encode()))[0] for n in range(1000))
    assert min(spread.values()) > 400


def test_a_share_of_weight_zero_gets_nothing() -> None:
    splits = (Split(route="blue", weight=0), Split(route="green", weight=1))
    assert names(resolve(routes(make_route("public", splits=splits), BLUE, GREEN), "public", 0.0)) == ["green"]


def test_fallbacks_come_after_what_is_ready_and_before_what_is_not() -> None:
    empty = make_route("empty", reason="it loads", fallbacks=("green",))
    assert names(resolve(routes(empty, GREEN), "empty", 0.0)) == ["green", "empty"]
    ready = make_route("ready", TARGETS[2], fallbacks=("green", "blue"))
    assert names(resolve(routes(ready, BLUE, GREEN), "ready", 0.0)) == ["ready", "green", "blue"]


def test_circles_end_and_no_route_comes_twice() -> None:
    one = make_route("one", splits=(Split(route="two", weight=1),), fallbacks=("one", "blue"))
    two = make_route("two", TARGETS[2], fallbacks=("one", "two"))
    assert names(resolve(routes(one, two, BLUE), "one", 0.0)) == ["two", "blue"]


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(
            st.booleans(),
            st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 5)), max_size=3),
            st.lists(st.sampled_from("abcdefg"), max_size=3),
        ),
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_any_graph_ends_with_each_leaf_once(
    graph: dict[str, tuple[bool, list[tuple[str, int]], list[str]]], draw: float
) -> None:
    find = routes(
        *(
            make_route(
                name,
                *(TARGETS[:1] if ready else ()),
                splits=tuple(Split(route=to, weight=weight) for to, weight in splits),
                fallbacks=tuple(fallbacks),
            )
            for name, (ready, splits, fallbacks) in graph.items()
        )
    )
    found = names(resolve(find, "a", draw))
    assert len(found) == len(set(found))
    assert set(found) <= set(graph)
