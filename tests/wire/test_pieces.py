"""Pieces of files, and how they are told of."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import BadMessage
from wire.pieces import PIECE_BYTES, pack, piece_count, piece_span, unpack


@given(st.integers(1, 10 * PIECE_BYTES))
def test_pieces_cover_a_file_once(size):
    spans = [piece_span(index, size) for index in range(piece_count(size))]
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))


def test_a_file_without_bytes_has_no_piece():
    assert piece_count(0) == 0


@given(st.sets(st.integers(0, 99)))
def test_a_bitmap_says_what_was_packed(pieces):
    assert unpack(pack(pieces, 100), 100) == pieces


@given(st.text(max_size=20))
def test_a_strange_bitmap_is_refused_or_within_bounds(text):
    with contextlib.suppress(BadMessage):
        assert unpack(text, 10) <= set(range(10))


def test_what_is_no_base64_is_refused():
    with pytest.raises(BadMessage):
        unpack("§", 8)
