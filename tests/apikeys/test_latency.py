"""Histograms and cost of usage: added up exactly, percentiles within their bucket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeys import latency, usage
from tests.apikeys.factories import NOW, client_of, make_admin, make_batch, make_key, make_row
from wire.feed import LATENCY_BOUNDS_MS

NONE = (0,) * latency.BUCKETS


def counts(**buckets):
    return tuple(buckets.get(f"b{index}", 0) for index in range(latency.BUCKETS))


def test_a_percentile_lies_within_its_bucket():
    assert latency.percentile(counts(b3=100), 0.5) == 75  # between 50 and 100 ms
    assert latency.percentile(counts(b0=50, b4=50), 0.95) == 235
    assert latency.percentile(counts(b14=3), 0.5) == LATENCY_BOUNDS_MS[-1]
    assert latency.percentile(NONE, 0.5) is None
    assert latency.percentile((), 0.5) is None


@given(st.lists(st.integers(0, 1000), min_size=latency.BUCKETS, max_size=latency.BUCKETS))
def test_percentiles_grow_with_their_share(told):
    found = [latency.percentile(told, share) for share in (0.01, 0.5, 0.95, 1.0)]
    assert found == sorted(found, key=lambda value: -1 if value is None else value)


@pytest.mark.django_db
def test_histograms_and_cost_are_added_up_over_batches():
    key = make_key()
    usage.record_batch(make_batch(make_row(key, cost=5, durations=counts(b3=1), ttfts=counts(b1=1))), NOW)
    usage.record_batch(make_batch(make_row(key, cost=6, durations=counts(b3=2), ttfts=counts(b2=1))), NOW)
    usage.record_batch(make_batch(make_row(key), make_row(key, model="m", durations=(1, 2))), NOW)  # older, broken
    by_model = {row.model: row for row in usage.totals(by="model", latencies=True)}
    assert (by_model["chat"].cost, by_model["chat"].requests) == (11, 4 - 1)
    assert by_model["chat"].duration_p50_ms == 75
    assert by_model["chat"].ttft_p95_ms == 48
    assert by_model["m"].duration_p50_ms is None
    (whole,) = usage.totals(by=(), latencies=True)
    assert (whole.cost, whole.duration_p50_ms) == (11, 75)
    assert [row.status for row in usage.totals(by="status")] == [200]


@pytest.mark.django_db
@pytest.mark.urls("tests.apikeys.urls")
def test_the_api_and_the_csv_tell_cost_and_percentiles():
    key = make_key()
    usage.record_batch(make_batch(make_row(key, cost=1_500_000, durations=counts(b3=1))), NOW)
    admin = client_of(make_admin())
    asked = {"group_by": "status", "since": "2026-03-01T00:00:00Z"}
    (row,) = admin.get("/api/v1/usage/", asked).json()["results"]
    assert (row["status"], row["cost"], row["duration_p95_ms"], row["ttft_p50_ms"]) == (200, "0.0015", 98, None)
    head, line = admin.get("/api/v1/usage/export", asked).content.decode().splitlines()
    assert dict(zip(head.split(","), line.split(","), strict=True))["cost"] == "0.0015"
