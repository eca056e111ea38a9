"""Limits that are nearly used up are told once a period."""

import datetime as dt

import pytest

from apikeys import services, usage, warnings
from apikeys.models import QuotaWarning
from tests.apikeys.factories import HOUR, NOW, client_of, make_admin, make_batch, make_key, make_project, make_row

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.apikeys.urls")]


def use(key, tokens, **fields):
    usage.record_batch(make_batch(make_row(key, prompt_tokens=tokens, completion_tokens=0, **fields)), NOW)


def told(rows):
    return sorted((row.subject, row.limit, row.percent) for row in rows)


def test_each_share_of_each_limit_is_told_once():
    key = make_key(make_project(tokens_per_day=1000), tokens_per_month=5000)
    use(key, 799)
    assert warnings.warn(NOW) == []
    use(key, 1)
    assert told(warnings.warn(NOW)) == [("project", "tokens_per_day", 80)]
    assert warnings.warn(NOW) == []
    use(key, 3200)
    assert told(warnings.warn(NOW)) == [(f"key {key.pk}", "tokens_per_month", 80), ("project", "tokens_per_day", 100)]
    assert warnings.warn(NOW) == []


def test_a_new_day_warns_anew():
    key = make_key(tokens_per_day=100)
    use(key, 90)
    assert len(warnings.warn(NOW)) == 1
    use(key, 90, at=HOUR + dt.timedelta(days=1))
    assert len(warnings.warn(NOW + dt.timedelta(days=1))) == 1


def test_money_and_limits_by_model_warn_too(django_assert_max_num_queries):
    project = make_project(cost_per_month=1_000_000_000)
    services.set_model_quota(project, "chat", tokens_per_month=50)
    use(make_key(project), 60, cost=850_000_000)
    with django_assert_max_num_queries(7):
        found = warnings.warn(NOW)
    assert told(found) == [
        ("model chat", "tokens_per_month", 80),
        ("model chat", "tokens_per_month", 100),
        ("project", "cost_per_month", 80),
    ]
    shown = client_of(make_admin()).get(f"/api/v1/projects/{project.pk}/warnings/").json()
    assert ("project", "0.85", "1") in [(row["subject"], row["used"], row["allowed"]) for row in shown]


def test_without_use_nothing_is_told():
    make_key(make_project(tokens_per_day=1))
    assert warnings.warn(NOW) == []
    assert not QuotaWarning.objects.exists()
