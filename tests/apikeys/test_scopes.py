"""What a key may be limited to, a project's limits by model, and money; as services, REST, commands and the feed."""

import datetime as dt
import io
import json

import pytest
from django.core.management import CommandError, call_command

from apikeys import services, usage
from apikeys.errors import InvalidEndpoints, InvalidLimits, InvalidNetworks
from apikeys.models import ApiKey, ModelQuota, Project
from tests.apikeys.factories import (
    NOW,
    client_of,
    make_admin,
    make_batch,
    make_key,
    make_project,
    make_row,
    make_user,
)
from wire.feed import Limits

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.apikeys.urls")]
PROJECTS, KEYS = "/api/v1/projects/", "/api/v1/keys/"


def test_scopes_are_kept_in_one_form_and_reach_the_feed():
    key = make_key(
        allowed_endpoints=["embeddings", "chat", "chat"],
        allowed_networks=["10.1.0.0/16", " 192.0.2.7 ", "2001:db8::/32"],
        service="indexer",
    )
    assert (key.allowed_endpoints, key.service) == (["chat", "embeddings"], "indexer")
    (told,) = services.feed_keys(NOW)
    assert told.endpoints == ("chat", "embeddings")
    assert told.networks == ("10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32")
    services.update_key(key, now=NOW, allowed_endpoints=None, allowed_networks=[])
    (told,) = services.feed_keys(NOW)
    assert (told.endpoints, told.networks) == (None, ())


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"allowed_endpoints": ["chat", "images"]}, InvalidEndpoints),
        ({"allowed_endpoints": "chat"}, InvalidEndpoints),
        ({"allowed_networks": ["10.1.0.1/16"]}, InvalidNetworks),
        ({"allowed_networks": ["example.com"]}, InvalidNetworks),
        ({"allowed_networks": "10.0.0.0/8"}, InvalidNetworks),
        ({"allowed_networks": [f"10.0.{n}.0/24" for n in range(101)]}, InvalidNetworks),
        ({"cost_per_month": 0}, InvalidLimits),
        ({"max_tokens_per_request": -1}, InvalidLimits),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_no_key(fields, error):
    with pytest.raises(error):
        make_key(**fields)
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("priority", [0, 101, True, 1.5])
def test_a_priority_is_a_whole_number_from_1_to_100(priority):
    with pytest.raises(InvalidLimits):
        make_project(priority=priority)


def test_limits_by_model_priority_and_money_reach_the_feed():
    project = make_project("team", priority=4, cost_per_month=2_000_000_000, max_tokens_per_request=9)
    key = make_key(project)
    services.set_model_quota(project, "chat", tokens_per_day=100)
    services.set_model_quota(project, "chat", requests_per_minute=5)  # in place of the one before
    usage.record_batch(make_batch(make_row(key, cost=300), make_row(key, model="other", cost=7)), NOW)
    (told,) = services.feed_projects(NOW)
    assert (told.priority, told.used.cost_this_month) == (4, 307)
    assert told.limits == Limits(cost_per_month=2_000_000_000, max_tokens_per_request=9)
    (quota,) = told.model_quotas
    assert (quota.model, quota.limits) == ("chat", Limits(requests_per_minute=5))
    assert (quota.used.tokens_today, quota.used.tokens_this_month, quota.used.cost_this_month) == (15, 15, 300)
    assert services.feed_keys(NOW)[0].used.cost_this_month == 307


def test_the_api_takes_and_shows_money_as_decimals():
    admin = client_of(make_admin())
    made = admin.post(PROJECTS, {"name": "team", "cost_per_month": "12.50", "priority": 3}).json()
    assert (made["cost_per_month"], made["priority"]) == ("12.5", 3)
    assert Project.objects.get().cost_per_month == 12_500_000_000
    url = f"{PROJECTS}{made['id']}/"
    assert admin.patch(url, {"cost_per_month": "-1"}).status_code == 400
    assert admin.patch(url, {"priority": 101}).status_code == 400
    assert admin.patch(url, {"cost_per_month": None}).json()["cost_per_month"] is None


def test_quotas_by_model_are_the_fleets_to_set():
    project = make_project("team")
    admin, owner = client_of(make_admin()), make_user()
    services.set_member(project, owner, "owner")
    url = f"{PROJECTS}{project.pk}/model-quotas/"
    made = admin.post(url, {"model": "chat", "tokens_per_day": 10, "cost_per_month": "0.5"})
    assert (made.status_code, made.json()["tokens_per_day"], made.json()["cost_per_month"]) == (200, 10, "0.5")
    assert client_of(owner).get(url).json()[0]["model"] == "chat"
    assert client_of(owner).post(url, {"model": "chat"}).status_code == 403
    assert admin.get(f"{PROJECTS}{project.pk}/").json()["model_quotas"][0]["model"] == "chat"
    assert admin.post(url, {"model": "chat", "tokens_per_day": 0}).status_code == 400
    one = f"{url}{made.json()['id']}/"
    assert client_of(owner).delete(one).status_code == 403
    assert admin.delete(one).status_code == 204
    assert not ModelQuota.objects.exists()
    assert admin.delete(one).status_code == 404


def test_a_key_is_made_with_scopes_by_the_api():
    project = make_project("team")
    admin = client_of(make_admin())
    asked = {
        "project": str(project.pk),
        "name": "k",
        "allowed_endpoints": ["chat"],
        "allowed_networks": ["10.0.0.0/8"],
        "service": "bot",
        "max_tokens_per_request": 100,
    }
    made = admin.post(KEYS, asked)
    assert made.status_code == 201, made.json()
    assert {name: made.json()[name] for name in asked} == asked
    wrong = admin.post(KEYS, {**asked, "allowed_networks": ["here"]})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_networks")
    assert admin.post(KEYS, {**asked, "allowed_endpoints": ["images"]}).status_code == 400


def test_the_command_takes_scopes_and_limits_and_prints_json():
    out = io.StringIO()
    arguments = ["--endpoint", "chat", "--network", "10.0.0.0/8", "--service", "bot", "--days", "7", "--json"]
    limits = ["--tokens-per-day", "1000", "--cost-per-month", "1.25"]
    call_command("create_key", "--project", "team", "--name", "k", *arguments, *limits, stdout=out)
    told = json.loads(out.getvalue())
    key = ApiKey.objects.get()
    assert (told["id"], told["key"].startswith(key.prefix)) == (key.pk, True)
    assert (key.allowed_endpoints, key.allowed_networks, key.service) == (["chat"], ["10.0.0.0/8"], "bot")
    assert (key.tokens_per_day, key.cost_per_month) == (1000, 1_250_000_000)
    assert key.expires_at - key.created_at > dt.timedelta(days=6)
    with pytest.raises(CommandError, match="not a network"):
        call_command("create_key", "--project", "new", "--name", "k", "--network", "x", stdout=out)
    assert not Project.objects.filter(name="new").exists()
