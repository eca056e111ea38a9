"""Quotas beyond the minute: a project's models, one request, money; and what a key is limited to."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.access import authenticate, refused
from gateway.errors import GatewayError
from gateway.quotas.ledger import Ledger
from gateway.quotas.subjects import Ask, LimitKind, Refusal, Subject
from gateway.quotas.windows import Instant, Spent
from gateway.service import Settings
from gateway.state import Network, State, from_snapshot, ip_network
from tests.gateway.master import PEPPER, make_feed_key, make_project, make_route, until
from tests.gateway.test_errors import refused as refused_by
from tests.gateway.test_quota import NOON, at
from tests.gateway.world import World, running_world
from wire.feed import FeedSnapshot, Limits, ModelQuota, Price, Used

PRICE = Price(prompt=1_000_000, cached=100_000, completion=2_000_000)
"""1, 0.1 and 2 units per million tokens."""


def subject(limits: Limits, used: Used | None = None, owner: str = "project") -> tuple[Subject, ...]:
    return (Subject(owner, f"{owner}:x", limits, used or Used(), NOON),)


def refusal(ledger: Ledger, subjects: tuple[Subject, ...], ask: Ask) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ledger.admit(subjects, ask, at(0))
    return caught.value


# ------------------------------------------------------------------------------------------------ pure


def test_a_price_is_of_all_kinds_of_tokens() -> None:
    assert PRICE.cost(1000, 400, 500) == 600 * 1000 + 400 * 100 + 500 * 2000
    assert Price().cost(10**9, 0, 10**9) == 0


def test_money_is_reserved_at_the_full_price_and_the_rest_comes_back() -> None:
    ledger, limited = Ledger(), subject(Limits(cost_per_month=1_000_000))
    hold = ledger.admit(limited, Ask(100, 200, True, PRICE), at(0))
    assert hold.reserved == Spent(300, 100 * 1000 + 200 * 2000)
    refused_once = refusal(ledger, limited, Ask(100, 250, True, PRICE))
    assert (refused_once.kind, refused_once.retry_after_s) == (LimitKind.COST_PER_MONTH, 5.0)
    ledger.settle(hold, Spent(110, 120_000), at(1))
    ledger.admit(limited, Ask(100, 250, True, PRICE), at(2))


def test_used_up_money_waits_for_the_next_month() -> None:
    ledger, limited = Ledger(), subject(Limits(cost_per_month=100), Used(cost_this_month=100))
    error = refused(refusal(ledger, limited, Ask(1, 1, True, PRICE)))
    assert (error.status, error.code) == (429, "insufficient_quota")
    assert "Limit 0.0000" in error.message
    assert error.retry_after_s is not None
    assert error.retry_after_s > 3600
    free = refusal(ledger, limited, Ask(1, 1, True))  # a request without a price neither
    assert free.kind is LimitKind.COST_PER_MONTH


def test_one_request_may_use_so_much_and_no_more() -> None:
    ledger, limited = Ledger(), subject(Limits(max_tokens_per_request=100), owner="key")
    error = refused(refusal(ledger, limited, Ask(50, 60, True)))
    assert (error.status, error.code, error.param) == (400, "max_tokens_per_request", "max_tokens")
    hold = ledger.admit(limited, Ask(40, 512, False), at(0))
    assert (hold.reserved.tokens, hold.bound) == (100, 60)
    assert ledger.admit(limited, Ask(50, 50, True), at(0)).bound is None


def test_warnings_begin_at_four_fifths() -> None:
    ledger = Ledger()
    limited = subject(Limits(tokens_per_day=1000, tokens_per_month=10_000), Used(tokens_today=790))
    assert ledger.warnings(limited, at(0)) == ()
    ledger.settle(ledger.admit(limited, Ask(10, 0, True), at(0)), Spent(10), at(0))
    assert ledger.warnings(limited, at(0)) == ("project tokens per day 80%",)


def test_minutes_survive_a_restart() -> None:
    ledger, limited = Ledger(), subject(Limits(requests_per_minute=3, tokens_per_minute=100))
    for _ in range(3):
        ledger.settle(ledger.admit(limited, Ask(5, 5, True), at(0)), Spent(10), at(0))
    kept = ledger.minutes(at(10))
    later = Instant(7.0, NOON + 30)  # another boot: the monotonic clock starts anew
    restarted = Ledger()
    restarted.restore_minutes(kept, later)
    with pytest.raises(Refusal):
        restarted.admit(limited, Ask(5, 5, True), later)
    _, tokens = restarted.rates(limited, later)
    assert tokens is not None
    assert tokens.remaining == 70
    restarted.admit(limited, Ask(5, 5, True), Instant(42.0, NOON + 65))


# ------------------------------------------------------------------------------------------------ keys


def state_of(**changes: Any) -> tuple[State, bytes]:
    key, secret = make_feed_key(**changes)
    snapshot = FeedSnapshot(pepper=PEPPER, projects=(make_project(),), keys=(key,), routes=())
    return from_snapshot(snapshot, NOON), f"Bearer {secret}".encode()


def code_of(state: State, authorization: bytes, **asked: Any) -> str:
    try:
        authenticate(state, authorization, NOON, **asked)
    except GatewayError as error:
        return error.code
    return "ok"


def test_a_key_may_be_limited_to_endpoints() -> None:
    state, bearer = state_of(endpoints=("chat", "embeddings"))
    assert code_of(state, bearer, group="chat") == "ok"
    assert code_of(state, bearer, group="audio") == "endpoint_not_allowed"
    assert code_of(state, bearer) == "ok"  # the list of models


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("10.1.2.3", "ok"),
        ("::ffff:10.1.2.3", "ok"),
        ("fd00::1%eth0", "ok"),
        ("11.1.2.3", "network_not_allowed"),
        ("fe80::1", "network_not_allowed"),
        ("", "network_not_allowed"),
        ("nonsense", "network_not_allowed"),
    ],
)
def test_a_key_may_be_limited_to_networks(address: str, code: str) -> None:
    state, bearer = state_of(networks=("10.0.0.0/8", "fd00::/8"))
    assert code_of(state, bearer, address=address) == code


def test_both_secrets_of_a_rotation_open_until_its_overlap_ends() -> None:
    old, old_text = make_feed_key()
    new_text = old_text[:-1] + ("A" if old_text[-1] != "A" else "B")
    digest = hmac.new(bytes.fromhex(PEPPER), new_text.encode(), hashlib.sha256).hexdigest()
    rotated = msgspec.structs.replace(old, secret_hash=digest, previous_hash=old.secret_hash, previous_until=NOON + 60)
    state = from_snapshot(FeedSnapshot(pepper=PEPPER, projects=(make_project(),), keys=(rotated,), routes=()), NOON)
    for text in (old_text, new_text):
        authenticate(state, f"Bearer {text}".encode(), NOON)
    authenticate(state, f"Bearer {new_text}".encode(), NOON + 61)
    with pytest.raises(GatewayError, match="Incorrect API key"):
        authenticate(state, f"Bearer {old_text}".encode(), NOON + 61)


# ------------------------------------------------------------------------------------------------ whole


@pytest.mark.asyncio
async def test_a_project_has_a_quota_for_one_model_only(world: World) -> None:
    quota = ModelQuota(model="public", limits=Limits(requests_per_minute=1))
    await world.route(make_route("other", *(await first_route(world)).targets))
    await world.push(projects=(make_project(model_quotas=(quota,)),))
    async with world.post() as response:
        assert response.status == 200
        assert response.headers["x-ratelimit-limit-requests"] == "1"
    status, error, _ = await refused_by(world.post())
    assert (status, "for this model" in error["message"]) == (429, True)
    async with world.post(world.ask(model="other")) as response:
        assert response.status == 200


@pytest.mark.asyncio
async def test_an_unbounded_answer_is_held_to_what_a_request_may_use(world: World) -> None:
    await world.limit(Limits(max_tokens_per_request=50))
    async with world.post() as response:
        assert response.status == 200
    assert 0 < world.engine.requests[-1]["max_tokens"] < 50
    async with world.post(world.ask(max_tokens=5)) as response:
        assert response.status == 200
    assert world.engine.requests[-1]["max_tokens"] == 5


@pytest.mark.asyncio
async def test_usage_carries_its_cost_and_how_long_it_took(world: World) -> None:
    route = msgspec.structs.replace(await first_route(world), price=PRICE)
    await world.route(route)
    async with world.post() as response:
        assert response.status == 200
    [row] = await world.usage()
    assert row.cost == PRICE.cost(11, 3, 5)
    assert (sum(row.durations), sum(row.ttfts)) == (1, 1)


@pytest.mark.asyncio
async def test_a_warning_is_in_the_headers(world: World) -> None:
    await world.limit(Limits(tokens_per_day=1000), used=Used(tokens_today=900))
    async with world.post(world.ask(max_tokens=5)) as response:
        assert response.headers["x-stokehold-quota-warning"] == "key tokens per day 90%"


@pytest.mark.asyncio
async def test_the_address_is_the_connections_unless_a_proxy_of_ours_tells_it(tmp_path: Path, world: World) -> None:
    await world.push(keys=(msgspec.structs.replace(world.key, networks=("203.0.113.0/24",)),))
    headers = {"x-forwarded-for": "203.0.113.7"}
    assert (await refused_by(world.post(headers=headers)))[1]["code"] == "network_not_allowed"
    proxies: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)
    async with running_world(tmp_path / "behind", Settings(access_log=False, trusted_proxies=proxies)) as behind:
        await behind.push(keys=(msgspec.structs.replace(behind.key, networks=("203.0.113.0/24",)),))
        async with behind.post(headers=headers) as response:
            assert response.status == 200
        forged = {"x-forwarded-for": "203.0.113.7, 198.51.100.1"}  # the nearest is what our proxy saw
        assert (await refused_by(behind.post(headers=forged)))[1]["code"] == "network_not_allowed"


async def first_route(world: World) -> Any:
    service = world.gateway.service
    assert service is not None
    await until(lambda: service.state is not None, what="the first state")
    assert service.state is not None
    return service.state.routes["public"]
