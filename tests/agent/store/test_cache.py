"""What goes from a cache, and in which order."""

from __future__ import annotations

import random

from agent.store.cache import Kept, model_of, surplus, to_evict


def kept(digest: str, used_at: float, *blobs: str, name: str = "m:1", bound: bool = False) -> Kept:
    return Kept(digest, name, used_at, frozenset(blobs), bound)


def test_the_longest_unused_goes_first_and_only_as_many_as_needed():
    versions = [kept("new", 3, "c"), kept("old", 1, "a"), kept("middle", 2, "b")]
    sizes = {"a": 10, "b": 10, "c": 10}
    assert to_evict(versions, sizes, 5) == ["old"]
    assert to_evict(versions, sizes, 11) == ["old", "middle"]
    assert to_evict(versions, sizes, 0) == []


def test_what_is_bound_stays_whatever_is_asked():
    versions = [kept("used", 1, "a", bound=True), kept("free", 2, "b")]
    assert to_evict(versions, {"a": 10, "b": 10}, 1000) == ["free"]


def test_a_blob_that_another_version_has_frees_nothing():
    versions = [kept("one", 1, "shared"), kept("two", 2, "shared", "own"), kept("three", 3, "big")]
    assert to_evict(versions, {"shared": 100, "own": 1, "big": 50}, 60) == ["one", "two"]


def test_blobs_without_a_version_count_as_freed():
    assert to_evict([kept("one", 1, "a")], {"a": 10, "orphan": 100}, 50) == []


def test_of_each_model_the_longest_unused_versions_are_too_many():
    versions = [
        kept("a1", 1, name="a:1"),
        kept("a2", 2, name="a:2"),
        kept("a3", 3, name="a:3"),
        kept("b1", 1, name="b:1"),
        kept("x", 0, name=""),  # of an earlier release: nobody knows of which model
    ]
    assert surplus(versions, 2) == ["a1"]
    assert surplus(versions, 0) == ["a3", "a2", "a1", "b1"]
    assert surplus(versions, None) == []


def test_versions_in_use_count_and_stay():
    versions = [kept("a1", 1, name="a:1", bound=True), kept("a2", 2, name="a:2"), kept("a3", 3, name="a:3")]
    assert surplus(versions, 1) == ["a3", "a2"]
    assert surplus(versions, 2) == ["a2"]


def test_a_models_name_may_hold_a_colon():
    assert model_of("org/name:1") == "org/name"
    assert model_of("name") == "name"


def test_enough_is_freed_or_everything_that_may_go_is_gone():
    chance = random.Random(7)
    for _ in range(300):
        sizes = {str(n): chance.randint(1, 50) for n in range(8)}
        versions = [
            Kept(
                str(n),
                f"m{n % 3}:{n}",
                chance.random(),
                frozenset(chance.sample(sorted(sizes), 3)),
                chance.random() < 0.3,
            )
            for n in range(6)
        ]
        excess = chance.randint(0, 200)
        gone = set(to_evict(versions, sizes, excess))
        staying = [one for one in versions if one.digest not in gone]
        assert all(not one.bound for one in versions if one.digest in gone)
        needed = {blob for one in staying for blob in one.blobs}
        freed = sum(size for blob, size in sizes.items() if blob not in needed)
        assert freed >= excess or all(one.bound for one in staying)
