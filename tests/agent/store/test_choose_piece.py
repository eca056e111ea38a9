"""Rarest first, and what is done when nothing is left to ask for."""

from __future__ import annotations

import random

from agent.store.choose_piece import Key, choose


def key(piece: int) -> Key:
    return Key("blob", piece)


def test_the_piece_with_the_fewest_copies_comes_first():
    copies = {key(0): 2, key(1): 0, key(2): 1}
    assert choose(copies, {}, set(), copies.__getitem__, random.random) == key(1)


def test_equals_are_chosen_by_chance():
    pieces = [key(number) for number in range(20)]
    chosen = {choose(pieces, {}, set(), lambda _: 0, random.Random(seed).random) for seed in range(40)}
    assert len(chosen) > 8


def test_what_is_asked_for_is_not_asked_for_again_while_there_is_something_else():
    assert choose([key(0), key(1)], {key(0): 1}, {key(0)}, lambda _: 0, random.random) == key(1)


def test_a_late_piece_is_asked_of_a_second_source_and_of_no_third():
    assert choose([key(0)], {key(0): 1}, {key(0)}, lambda _: 0, random.random) == key(0)
    assert choose([key(0)], {key(0): 1}, set(), lambda _: 0, random.random) is None
    assert choose([key(0)], {key(0): 2}, {key(0)}, lambda _: 0, random.random) is None


def test_nothing_is_available():
    assert choose([], {}, set(), lambda _: 0, random.random) is None
