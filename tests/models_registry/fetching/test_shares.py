"""Who gets how much when several imports are fetched at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models_registry.fetching.shares import Contender, Share, share_of

ALONE = [Contender(1, 0)]


def test_one_alone_has_everything() -> None:
    assert share_of(1, ALONE, 16, None) == Share(16, None)
    assert share_of(1, ALONE, 16, 1000.0) == Share(16, 1000.0)


def test_equals_share_alike() -> None:
    three = [Contender(key, 5) for key in (1, 2, 3)]
    assert [share_of(key, three, 16, 300.0) for key in (1, 2, 3)] == [Share(6, 100), Share(5, 100), Share(5, 100)]


def test_the_first_has_nearly_all_and_the_others_go_on() -> None:
    some = [Contender(1, 0), Contender(2, 9), Contender(3, 0)]
    assert [share_of(key, some, 16, 1000.0) for key in (1, 2, 3)] == [Share(1, 50), Share(14, 900), Share(1, 50)]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 64))
def test_nobody_stands_still_and_the_rate_is_never_more_than_there_is(priorities: list[int], connections: int) -> None:
    everybody = [Contender(key, priority) for key, priority in enumerate(priorities)]
    shares = [share_of(one.key, everybody, connections, 1e6) for one in everybody]
    assert all(share.connections >= 1 and share.bytes_per_second for share in shares)
    assert sum(share.bytes_per_second or 0 for share in shares) <= 1e6 * 1.000001
    assert sum(share.connections for share in shares) <= max(connections, len(everybody))
