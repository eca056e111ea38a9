"""Keys, limits, routes and prices in a real browser."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import requests
from django.utils import timezone
from playwright.sync_api import Page, expect

from apikeys import services, usage, warnings
from apikeys.models import ApiKey, ManagementKey, ModelQuota
from deployments.models import ModelPrice, Route
from tests.apikeys.factories import make_batch, make_row
from tests.browser.conftest import Site
from tests.factories import make_deployment, make_key, make_project

pytestmark = pytest.mark.browser


def picture(page: Page, name: str) -> None:
    """A screenshot for whoever wants to look: STOKEHOLD_TEST_PICTURES names a folder."""
    if folder := os.environ.get("STOKEHOLD_TEST_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_a_key_with_scopes_is_made_and_gets_a_new_secret(site: Site) -> None:
    project = make_project(name="team")
    make_deployment(name="chat")
    page = site.sign_in()
    site.open(f"apikeys/apikey/add/?project={project.pk}")
    page.fill("[name=name]", "indexer")
    page.check("[name=allowed_endpoints][value=embeddings]")
    page.fill("[name=allowed_networks]", "10.1.0.1/16")
    picture(page, "key_add")
    page.click("[data-test=create-key]")
    expect(page.locator("[data-test=key-form]")).to_contain_text("is not a network")
    page.fill("[name=allowed_networks]", "10.1.0.0/16")
    page.click("[data-test=create-key]")
    expect(page.locator("[data-test=key-made]")).to_contain_text("sk-stk-")
    key = ApiKey.objects.get(name="indexer")
    assert (key.allowed_endpoints, key.allowed_networks) == (["embeddings"], ["10.1.0.0/16"])
    site.open(f"apikeys/apikey/{key.pk}/change/")
    picture(page, "key")
    page.click("[data-test=rotate-key]")
    picture(page, "key_rotate")
    page.click("[data-test=rotate]")
    expect(page.locator("[data-test=key-made]")).to_contain_text(f"sk-stk-{key.pk}-")
    site.open(f"apikeys/apikey/{key.pk}/change/")
    expect(page.locator("#content")).to_contain_text("the secret before is good until")
    assert site.overflow_px() <= 0


def test_a_project_has_limits_by_model_and_shows_warnings(site: Site) -> None:
    project = make_project(name="team")
    key, _ = make_key(project=project)
    services.update_project(project, tokens_per_day=100, cost_per_month=2_000_000_000, priority=4)
    make_deployment(name="chat")
    now = timezone.now()
    row = make_row(key, at=now.replace(minute=0), prompt_tokens=70, cost=1_234_500, durations=(0, 0, 0, 1, *[0] * 11))
    usage.record_batch(make_batch(row), now)
    usage.record_batch(make_batch(make_row(key, at=now.replace(minute=0))), now)
    warnings.warn(now)
    page = site.sign_in()
    site.open(f"apikeys/project/{project.pk}/change/")
    expect(page.locator("[data-test=quota-warnings]")).to_contain_text("80 % of tokens per day")
    page.click("[data-test=add-quota]")
    page.select_option("[name=model]", "chat")
    page.fill("[name=requests_per_minute]", "600")
    page.fill("[name=cost_per_month]", "12.5")
    page.click("[data-test=quota-form] button.sk-primary")
    expect(page.locator("#content")).to_contain_text("600 requests per minute, 12.5 cost per month")
    quota = ModelQuota.objects.get()
    assert (quota.requests_per_minute, quota.cost_per_month) == (600, 12_500_000_000)
    picture(page, "project")
    assert site.overflow_px() <= 0
    site.open("apikeys/usagehour/?by=model&days=1")
    expect(page.locator("[data-test=usage-cost]")).to_contain_text("0.0012")
    picture(page, "usage")


def test_a_route_and_a_price_are_made(site: Site) -> None:
    make_deployment(name="stable")
    make_deployment(name="canary")
    page = site.sign_in()
    site.open("deployments/provider/add/")
    page.fill("[name=name]", "outside")
    page.fill("[name=base_url]", "https://api.example.com/v1")
    page.fill("[name=api_key]", "sk-outside")
    picture(page, "provider_add")
    page.click("[data-test=routing-form] button.sk-primary")
    expect(page.locator("body")).to_contain_text("outside is saved")
    site.open("deployments/route/add/")
    page.fill("[name=name]", "chat")
    for number, (target, kind, weight) in enumerate(
        [("deployment stable", "share", 9), ("deployment canary", "share", 1), ("provider outside", "fallback", 1)]
    ):
        page.select_option(f"[name=targets-{number}-target]", target)
        page.select_option(f"[name=targets-{number}-kind]", kind)
        page.fill(f"[name=targets-{number}-weight]", str(weight))
    page.fill("[name=targets-2-model]", "gpt-x")
    picture(page, "route_add")
    page.click("[data-test=routing-form] button.sk-primary")
    expect(page.locator("#content")).to_contain_text("deployment stable 90 %, deployment canary 10 %")
    expect(page.locator("#content")).to_contain_text("provider outside: gpt-x")
    picture(page, "routes")
    assert Route.objects.get().targets.count() == 3
    site.open("deployments/modelprice/add/")
    page.select_option("[name=name]", "chat")
    page.fill("[name=prompt]", "0.15")
    page.fill("[name=completion]", "0.6")
    page.click("[data-test=routing-form] button.sk-primary")
    expect(page.locator("body")).to_contain_text("chat is saved")
    assert ModelPrice.objects.get().prompt == 150_000
    picture(page, "prices")


def test_a_management_key_is_made_used_and_revoked(site: Site) -> None:
    make_project(name="team")
    page = site.sign_in()
    site.open("apikeys/managementkey/")
    expect(page.locator("#content")).to_contain_text("For scripts and continuous integration")
    page.click("text=Create a management key")
    page.fill("[name=name]", "nightly")
    page.fill("[name=allowed_networks]", "nowhere")
    picture(page, "management_key_add")
    page.click("[data-test=create-management-key]")
    expect(page.locator("[data-test=management-key-form]")).to_contain_text("is not a network")
    page.fill("[name=allowed_networks]", "127.0.0.0/8")
    page.click("[data-test=create-management-key]")
    made = page.locator("[data-test=management-key-made]")
    expect(made).to_contain_text("stk-mgmt-")
    text = re.search(r"stk-mgmt-[a-z0-9]{8}-[A-Za-z0-9]{43}", made.inner_text())
    assert text is not None
    assert site.overflow_px() <= 0
    picture(page, "management_key_made")
    headers = {"Authorization": f"Bearer {text[0]}"}
    projects = f"{site.url}/api/v1/projects/"
    found = requests.get(projects, headers=headers, timeout=10)
    assert [row["name"] for row in found.json()["results"]] == ["team"]
    assert requests.post(projects, json={"name": "x"}, headers=headers, timeout=10).status_code == 403
    page.click("[data-test=key-done]")
    expect(page.locator("#content")).to_contain_text("nightly")
    assert site.overflow_px() <= 0
    picture(page, "management_keys")
    page.click(f"[data-test=revoke-{ManagementKey.objects.get().pk}]")
    page.click("button.sk-danger")
    expect(page.locator("#content")).to_contain_text("revoked")
    assert requests.get(projects, headers=headers, timeout=10).status_code == 401


def test_a_project_is_told_to_keep_its_requests_and_to_ask_its_guard(site: Site) -> None:
    project = make_project(name="team")
    page = site.sign_in()
    site.open(f"apikeys/project/{project.pk}/change/")
    page.fill("[name=request_log_days]", "7")
    page.fill("[name=request_log_redact]", "(")
    page.fill("[name=guard_url]", "https://guard.example/check")
    page.click("text=Save")
    expect(page.locator("#content")).to_contain_text("is no pattern")
    page.fill("[name=request_log_redact]", r"\d{4}-\d{4}")
    page.click("text=Save")
    expect(page.locator("[data-test=request-log]")).to_contain_text("for 7 days, redacted")
    assert site.overflow_px() <= 0
    picture(page, "project_settings")
    project.refresh_from_db()
    assert (project.request_log_redact, project.guard_url) == ([r"\d{4}-\d{4}"], "https://guard.example/check")
