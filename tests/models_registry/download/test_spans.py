"""Sets of ranges against plain sets of numbers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from models_registry.download.spans import Spans, pieces

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30)


@given(RANGES, st.integers(0, 70))
def test_they_are_the_set_of_what_was_added(added: list[tuple[int, int]], size: int) -> None:
    spans, plain = Spans(), set[int]()
    for start, end in added:
        spans.add(start, end)
        plain |= set(range(start, end))
    assert {at for start, end in spans for at in range(start, end)} == plain
    assert spans.total == len(plain)
    assert spans.prefix_end == next(at for at in range(100) if at not in plain)
    missing = list(spans.missing(size))
    assert {at for start, end in missing for at in range(start, end)} == set(range(size)) - plain
    assert all(start < end for start, end in [*missing, *spans])
    found = list(spans)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(found))  # none touch


@given(RANGES, st.integers(1, 20))
def test_pieces_are_the_same_bytes_in_order(added: list[tuple[int, int]], size: int) -> None:
    spans = Spans(added)
    cut = list(pieces(spans, size))
    assert [at for start, end in cut for at in range(start, end)] == [a for s, e in spans for a in range(s, e)]
    assert all(0 < end - start <= size for start, end in cut)
