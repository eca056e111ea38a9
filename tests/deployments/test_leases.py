"""Leases of servers: lost, given up, and the brake when too many vanish at once."""

from __future__ import annotations

from deployments.leases import Heard, Judgement, Limits, judge, start

LIMITS = Limits(lease_s=15.0, evict_after_s=30.0, window_s=60.0, share=0.34)


class Watch:
    """A leader's passes, one a second, over servers that speak every second unless they are silent."""

    def __init__(self, servers: int, now: float = 1000.0) -> None:
        self.now = now
        self.memory = start(now)
        self.last_seen = {f"s{number}": now for number in range(servers)}
        self.lost_since: dict[str, float] = {}
        self.silent: set[str] = set()
        self.evicted: set[str] = set()
        self.began = self.ended = 0

    def run(self, seconds: int) -> Judgement:
        judged = None
        for _ in range(seconds):
            self.now += 1
            self.last_seen |= {key: self.now for key in self.last_seen if key not in self.silent}
            judged = self.judge()
        assert judged is not None
        return judged

    def judge(self) -> Judgement:
        heard = [Heard(key, seen, self.lost_since.get(key)) for key, seen in self.last_seen.items()]
        judged = judge(heard, self.memory, self.now, LIMITS)
        self.memory = judged.memory
        self.lost_since |= dict.fromkeys(judged.newly_lost, self.now)
        for key in judged.found:
            del self.lost_since[key]
        self.evicted = set(judged.evicted)
        self.began += judged.mass_loss_began
        self.ended += judged.mass_loss_ended
        return judged


def test_servers_that_speak_are_neither_lost_nor_evicted() -> None:
    watch = Watch(3)
    watch.run(300)
    assert not watch.lost_since
    assert not watch.evicted


def test_one_silent_server_is_lost_after_its_lease_and_evicted_later() -> None:
    watch = Watch(10)
    watch.silent = {"s1"}
    watch.run(15)
    assert not watch.lost_since
    watch.run(1)
    assert set(watch.lost_since) == {"s1"}
    watch.run(30)
    assert not watch.evicted
    watch.run(1)
    assert watch.evicted == {"s1"}
    assert watch.began == 0


def test_a_server_that_is_back_is_found_and_no_longer_evicted() -> None:
    watch = Watch(10)
    watch.silent = {"s1"}
    watch.run(60)
    assert watch.evicted == {"s1"}
    watch.silent = set()
    assert watch.run(1).found == ("s1",)
    watch.run(1)
    assert not watch.evicted
    assert not watch.lost_since


def test_when_many_vanish_at_once_nothing_is_evicted_and_it_is_told_once() -> None:
    watch = Watch(10)
    watch.silent = {"s1", "s2", "s3", "s4", "s5"}
    watch.run(3600)
    assert set(watch.lost_since) == watch.silent
    assert not watch.evicted
    assert (watch.began, watch.ended) == (1, 0)


def test_the_brake_ends_when_most_are_back_and_the_rest_is_given_its_whole_time() -> None:
    watch = Watch(10)
    watch.silent = {"s1", "s2", "s3", "s4", "s5"}
    watch.run(600)
    watch.silent = {"s1"}
    watch.run(1)
    assert (watch.began, watch.ended) == (1, 1)
    watch.run(30)
    assert not watch.evicted
    watch.run(1)
    assert watch.evicted == {"s1"}


def test_when_all_are_silent_nothing_is_evicted() -> None:
    watch = Watch(1)
    watch.silent = {"s0"}
    assert watch.run(3600).braking
    assert not watch.evicted


def test_both_servers_of_a_pair_vanishing_is_a_mass_loss_and_one_is_not() -> None:
    watch = Watch(2)
    watch.silent = {"s0"}
    watch.run(60)
    assert watch.evicted == {"s0"}
    watch = Watch(2)
    watch.silent = {"s0", "s1"}
    watch.run(60)
    assert not watch.evicted
    assert watch.began == 1


def test_servers_that_vanish_one_by_one_over_hours_are_each_evicted() -> None:
    watch = Watch(10)
    for number in range(5):
        watch.silent |= {f"s{number}"}
        watch.run(200)
    assert watch.evicted == {f"s{number}" for number in range(5)}
    assert watch.began == 0


def test_a_new_leader_waits_a_lease_before_it_calls_anyone_lost() -> None:
    watch = Watch(5)
    watch.now += 1000  # nobody was judged, nobody could be heard: the master was down
    watch.memory = start(watch.now)
    watch.silent = {"s1"}
    watch.run(15)
    assert not watch.lost_since
    watch.run(1)
    assert set(watch.lost_since) == {"s1"}


def test_a_new_leader_waits_before_it_evicts_who_was_lost_already() -> None:
    watch = Watch(5)
    watch.silent = {"s1"}
    watch.run(60)
    assert watch.evicted == {"s1"}
    watch.memory = start(watch.now)
    watch.run(30)
    assert not watch.evicted
    watch.run(1)
    assert watch.evicted == {"s1"}


def test_a_new_leader_keeps_the_brake_that_its_predecessor_announced() -> None:
    watch = Watch(10)
    watch.silent = {"s1", "s2", "s3", "s4", "s5"}
    watch.run(600)
    watch.memory = start(watch.now, open_loss=watch.lost_since)
    watch.run(600)
    assert not watch.evicted
    assert watch.began == 1
    watch.silent = set()
    watch.run(1)
    assert watch.ended == 1


def test_revoking_the_missing_ends_the_brake() -> None:
    watch = Watch(10)
    watch.silent = {"s1", "s2", "s3", "s4"}
    watch.run(100)
    assert watch.memory.vanished
    for key in ("s1", "s2", "s3"):  # a person revoked them: they are judged no more
        del watch.last_seen[key]
    watch.run(32)
    assert watch.ended == 1
    assert watch.evicted == {"s4"}
