"""Routes, providers and prices: what may be, what gateways are told, REST and pages."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import pytest
from auditlog.models import LogEntry
from cryptography.fernet import Fernet
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from deployments import services as deployments
from deployments.errors import (
    DeploymentInUse,
    InvalidPrice,
    InvalidProvider,
    InvalidRoute,
    NameInUse,
    ProviderInUse,
    RouteInUse,
)
from deployments.models import ModelPrice, Provider, Route, RouteTarget
from deployments.routing import services
from deployments.routing.services import TargetSpec
from fleet.sealed import Unreadable, reseal, unseal
from tests.factories import make_deployment, make_instance, make_server
from wire.feed import ENDPOINT_GROUPS, FeedRoute, Price, Split

pytestmark = pytest.mark.django_db
NOW = timezone.now()
URL = "https://api.example.com/v1"


def told() -> dict[str, FeedRoute]:
    return {route.id: route for route in deployments.feed_routes()}


def to(name: str, weight: int = 1, kind: str = "share") -> TargetSpec:
    return TargetSpec(kind=kind, weight=weight, deployment=name)


def ready(name: str) -> None:
    make_instance(deployment=make_deployment(name=name), server=make_server(now=NOW), now=NOW)


# ------------------------------------------------------------------------------------------------ the feed


def test_shares_and_fallbacks_reach_gateways() -> None:
    ready("stable")
    make_deployment(name="canary")
    services.create_provider("openai", URL, api_key="sk-outside", endpoints=["chat", "embeddings"])
    outside = TargetSpec(kind="fallback", provider="openai", model="gpt-x")
    services.create_route("chat", [to("stable", 9), to("canary", 1), outside])
    routes = told()
    assert routes["chat"].splits == (Split(route="stable", weight=9), Split(route="canary", weight=1))
    assert routes["chat"].fallbacks == ("@openai/gpt-x",)
    assert (routes["chat"].reason, routes["chat"].listed) == ("", True)
    assert set(routes["chat"].endpoints) == {"chat", "completions", "responses", "messages", "tokenize", "embeddings"}
    leaf = routes["@openai/gpt-x"]
    assert leaf.provider is not None
    assert (leaf.provider.base_url, leaf.provider.api_key, leaf.provider.model) == (URL, "sk-outside", "gpt-x")
    assert leaf.listed is False
    assert routes["stable"].targets[0].slots == 4  # llama.cpp's parallel requests


def test_an_alias_has_what_it_leads_to_and_says_when_that_is_not_ready() -> None:
    make_deployment(name="chat")
    services.create_route("inner", [to("chat")], listed=False)
    services.create_route("outer", [TargetSpec(route="inner")])
    routes = told()
    assert routes["outer"].endpoints == routes["chat"].endpoints
    assert routes["outer"].max_context_tokens == routes["chat"].max_context_tokens == 4096
    assert "ready" in routes["outer"].reason
    assert not routes["inner"].listed


def test_prices_are_told_with_deployments_and_routes() -> None:
    make_deployment(name="chat")
    services.create_route("alias", [to("chat")])
    services.set_price("chat", prompt=Decimal("0.5"), completion=Decimal(2))
    services.set_price("alias", prompt=Decimal(1), cached=Decimal("0.1"), completion=Decimal("3.000001"))
    routes = told()
    assert routes["chat"].price == Price(prompt=500_000, cached=500_000, completion=2_000_000)
    assert routes["alias"].price == Price(prompt=1_000_000, cached=100_000, completion=3_000_001)
    assert routes["alias"].price.cost(1_000_000, 0, 0) == 10**9
    services.remove_price(ModelPrice.objects.get(name="chat"))
    assert told()["chat"].price is None


def test_many_routes_cost_as_many_queries_as_one(django_assert_num_queries: Any) -> None:
    services.create_provider("p", URL)
    for number in range(4):
        ready(f"d{number}")
        services.create_route(f"r{number}", [to(f"d{number}"), TargetSpec(provider="p", model=str(number))])
    with django_assert_num_queries(6):
        deployments.feed_routes()


def test_a_key_that_cannot_be_opened_leaves_the_provider_out(settings: Any) -> None:
    services.create_provider("p", URL, api_key="secret")
    make_deployment(name="chat")
    services.create_route("r", [to("chat"), TargetSpec(kind="fallback", provider="p", model="m")])
    settings.FIELD_KEYS = [Fernet.generate_key().decode()]
    assert "@p/m" not in told()


# ------------------------------------------------------------------------------------------------ what may be


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "at least one share"),
        ([to("chat", 0)], "at least one share"),
        ([to("chat", kind="fallback")], "at least one share"),
        ([to("chat"), to("chat", 2)], "twice"),
        ([to("nothing")], "no deployment"),
        ([TargetSpec(deployment="chat", route="x")], "exactly one"),
        ([TargetSpec()], "exactly one"),
        ([TargetSpec(provider="p", model="")], "needs 1 to 200"),
        ([to("chat", 10_001)], "weight"),
        ([to("chat"), TargetSpec(kind="other", provider="p", model="m")], "kind"),
    ],
)
def test_a_route_without_sense_is_refused_and_leaves_nothing(targets: list[TargetSpec], words: str) -> None:
    make_deployment(name="chat")
    services.create_provider("p", URL)
    with pytest.raises(InvalidRoute, match=words):
        services.create_route("r", targets)
    assert not Route.objects.exists()


def test_deployments_and_routes_share_their_names() -> None:
    make_deployment(name="chat")
    with pytest.raises(NameInUse, match="deployment"):
        services.create_route("chat", [to("chat")])
    services.create_route("alias", [to("chat")])
    with pytest.raises(NameInUse, match="route"):
        services.create_route("alias", [to("chat")])
    version = make_deployment(name="other").revision.model_version
    with pytest.raises(NameInUse, match="route"):
        deployments.create_deployment(name="alias", model_version=version, now=NOW)


def test_no_route_leads_back_to_itself() -> None:
    make_deployment(name="chat")
    first = services.create_route("first", [to("chat")])
    second = services.create_route("second", [TargetSpec(route="first")])
    with pytest.raises(InvalidRoute, match="back to itself"):
        services.update_route(first, targets=[TargetSpec(route="second")])
    with pytest.raises(InvalidRoute, match="back to itself"):
        services.update_route(second, targets=[to("chat"), TargetSpec(kind="fallback", route="second")])
    assert told()["first"].splits == (Split(route="chat", weight=1),)
    assert [target.target for target in second.targets.all()] == ["route first"]


def test_what_is_used_is_not_deleted() -> None:
    deployment = make_deployment(name="chat")
    provider = services.create_provider("p", URL)
    inner = services.create_route("inner", [to("chat"), TargetSpec(provider="p", model="m")])
    outer = services.create_route("outer", [TargetSpec(route="inner")])
    with pytest.raises(DeploymentInUse, match="inner"):
        deployments.delete(deployment, now=NOW)
    with pytest.raises(ProviderInUse, match="inner"):
        services.delete_provider(provider)
    with pytest.raises(RouteInUse, match="outer"):
        services.delete_route(inner)
    services.delete_route(outer)
    services.delete_route(inner)
    services.delete_provider(provider)
    deployments.delete(deployment, now=NOW)


@pytest.mark.parametrize(
    "address",
    ["api.example.com", "http://api.example.com/v1", "ftp://x/v1", "https://u:p@x/v1", "https://x/?a", "https://[x"],
)
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(InvalidProvider):
        services.create_provider("p", address)


def test_a_loopback_address_needs_no_tls_and_a_key_is_kept_sealed(settings: Any) -> None:
    provider = services.create_provider("p", "http://127.0.0.1:9/v1/", api_key=" sk-1 ")
    assert provider.base_url == "http://127.0.0.1:9/v1"
    assert "sk-1" not in provider.sealed_key
    assert unseal(provider.sealed_key) == "sk-1"
    old, new = settings.FIELD_KEYS, Fernet.generate_key().decode()
    settings.FIELD_KEYS = [new, *old]
    under_new = reseal(provider.sealed_key)
    settings.FIELD_KEYS = [new]
    assert unseal(under_new) == "sk-1"
    with pytest.raises(Unreadable):
        unseal(provider.sealed_key)
    with pytest.raises(InvalidProvider):
        services.update_provider(provider, api_key="a\nb")


def test_the_command_seals_everything_by_the_first_key(settings: Any) -> None:
    row = services.create_provider("p", URL, api_key="sk-1")
    new = Fernet.generate_key().decode()
    settings.FIELD_KEYS = [new, *settings.FIELD_KEYS]
    call_command("reseal_secrets", stdout=io.StringIO())
    settings.FIELD_KEYS = [new]
    row.refresh_from_db()
    assert unseal(row.sealed_key) == "sk-1"
    settings.FIELD_KEYS = [Fernet.generate_key().decode()]
    with pytest.raises(CommandError, match="STOKEHOLD_FIELD_KEYS"):
        call_command("reseal_secrets")


@pytest.mark.parametrize("price", ["-1", "1000001", "NaN"])
def test_a_price_without_sense_is_refused(price: str) -> None:
    with pytest.raises(InvalidPrice):
        services.set_price("chat", prompt=Decimal(price), completion=Decimal(1))


# ------------------------------------------------------------------------------------------------ REST and pages


@pytest.fixture
def api(admin: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(admin)
    return client


def test_routes_providers_and_prices_by_rest(api: APIClient) -> None:
    make_deployment(name="chat")
    made = api.post("/api/v1/providers/", {"name": "p", "base_url": URL, "api_key": "sk-1", "endpoints": ["chat"]})
    assert made.status_code == 201, made.json()
    assert made.json()["has_key"] is True
    assert "sk-1" not in made.content.decode()
    targets = [{"deployment": "chat", "weight": 9}, {"kind": "fallback", "provider": "p", "model": "m"}]
    route = api.post("/api/v1/routes/", {"name": "r", "targets": targets})
    assert route.status_code == 201, route.json()
    assert route.json()["targets"] == [
        {"kind": "share", "weight": 9, "deployment": "chat"},
        {"kind": "fallback", "weight": 1, "provider": "p", "model": "m"},
    ]
    url = f"/api/v1/routes/{route.json()['id']}/"
    changed = api.patch(url, {"targets": [{"deployment": "chat"}], "name": "other"}).json()
    assert (changed["name"], changed["targets"]) == ("r", [{"kind": "share", "weight": 1, "deployment": "chat"}])
    wrong = api.patch(url, {"targets": []})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_route")
    assert len(api.get(url).json()["targets"]) == 1
    taken = api.post("/api/v1/routes/", {"name": "chat", "targets": [{"deployment": "chat"}]})
    assert (taken.status_code, taken.json()["code"]) == (409, "name_in_use")
    price = api.post("/api/v1/prices/", {"name": "r", "prompt": "0.15", "completion": "0.6"}).json()
    assert (price["prompt"], price["cached"], price["completion"]) == ("0.15", "0.15", "0.6")
    assert api.get("/api/v1/prices/").json()["results"][0]["name"] == "r"
    for address in (f"/api/v1/prices/{price['id']}/", url, f"/api/v1/providers/{made.json()['id']}/"):
        assert api.delete(address).status_code == 204


def test_a_viewer_changes_nothing(viewer: User) -> None:
    client = APIClient()
    client.force_authenticate(viewer)
    for rows in ("routes", "providers", "prices"):
        assert client.get(f"/api/v1/{rows}/").status_code == 200
        assert client.post(f"/api/v1/{rows}/", {}).status_code == 403


def test_pages_make_change_and_delete_a_route(admin_client: Client) -> None:
    make_deployment(name="chat")
    services.create_provider("p", URL)
    add = reverse("admin:deployments_route_add")
    asked = {"name": "r", "listed": "on", "targets-TOTAL_FORMS": 2, "targets-INITIAL_FORMS": 0}
    rows = [("deployment chat", "", "share", 3), ("provider p", "gpt-x", "fallback", 1)]
    for number, values in enumerate(rows):
        names = [f"targets-{number}-{name}" for name in ("target", "model", "kind", "weight")]
        asked |= dict(zip(names, values, strict=True))
    assert admin_client.post(add, asked).status_code == 302
    route = Route.objects.get(name="r")
    assert [target.target for target in route.targets.all()] == ["deployment chat", "provider p: gpt-x"]
    page = admin_client.get(reverse("admin:deployments_route_change", args=[route.pk])).content.decode()
    assert "gpt-x" in page
    assert "deployment chat 100 %" in admin_client.get(reverse("admin:deployments_route_changelist")).content.decode()
    assert admin_client.post(reverse("admin:deployments_route_delete_page", args=[route.pk])).status_code == 302
    assert not Route.objects.exists()


def test_pages_keep_a_providers_key_unless_there_is_a_new_one(admin_client: Client) -> None:
    services.create_provider("p", URL, api_key="sk-1")
    row = Provider.objects.get()
    page = reverse("admin:deployments_provider_change", args=[row.pk])
    assert "sk-1" not in admin_client.get(page).content.decode()
    asked = {"base_url": "https://other.example.com/v1", "endpoints": list(ENDPOINT_GROUPS)[:2]}
    assert admin_client.post(page, asked).status_code == 302
    row.refresh_from_db()
    assert (row.base_url, unseal(row.sealed_key)) == ("https://other.example.com/v1", "sk-1")
    admin_client.post(page, {**asked, "api_key": "sk-2"})
    row.refresh_from_db()
    assert unseal(row.sealed_key) == "sk-2"


def test_the_audit_log_tells_where_a_route_led_before_and_after() -> None:
    deployment, other = make_deployment(name="one"), make_deployment(name="two")
    route = services.create_route("public", [to("one")], actor="root")
    services.update_route(route, targets=[to("two")], actor="root")
    entries = LogEntry.objects.get_for_model(RouteTarget)
    assert {(entry.action, str(entry.changes_dict["deployment"])) for entry in entries} == {
        (LogEntry.Action.CREATE, str(["None", str(deployment.pk)])),
        (LogEntry.Action.DELETE, str([str(deployment.pk), "None"])),
        (LogEntry.Action.CREATE, str(["None", str(other.pk)])),
    }
