"""The admin in a real browser: it signs in, stays live without reloading, deploys, and fits a phone."""

from __future__ import annotations

import re

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from apikeys.models import ApiKey, UsageHour
from deployments.models import Deployment, Instance
from fleet.models import ServerState
from models_registry.locations.places import builtin
from tests.browser.conftest import Site
from tests.factories import make_deployment, make_instance, make_key, make_model_version, make_project, make_server
from tests.master import Master

pytestmark = pytest.mark.browser
PHONE = {"viewport": {"width": 375, "height": 812}}
DARK = {"color_scheme": "dark"}


def test_signing_in_shows_the_dashboard_with_next_steps(site: Site) -> None:
    page = site.sign_in()
    expect(page.locator("[data-test=dashboard]")).to_be_visible()
    expect(page.locator("[data-test=next-steps]")).to_contain_text("Add a server")


def test_a_wrong_password_is_told(site: Site) -> None:
    page = site.open("login/")
    page.fill("#id_username", "operator")
    page.fill("#id_password", "wrong")
    page.click("#login-form button[class*=primary]")
    expect(page.locator("[role=alert]")).to_contain_text("correct username and password")


def test_the_dashboard_follows_without_reloading(site: Site) -> None:
    page = site.sign_in()
    site.wait_live()
    page.evaluate("window.untouched = true")
    expect(page.locator("[data-test=card-servers]")).to_contain_text("0")
    server = make_server(name="atlas")
    expect(page.locator("[data-test=dashboard-servers]")).to_contain_text("atlas")
    ServerState.objects.filter(server=server).update(connected_since=None)
    expect(page.locator("[data-test=dashboard-servers]")).to_contain_text("offline")
    assert page.evaluate("window.untouched") is True


def test_a_server_that_joins_appears_in_the_open_list(site: Site) -> None:
    make_server(name="atlas")
    site.sign_in()
    page = site.open("fleet/server/")
    site.wait_live()
    page.evaluate("window.untouched = true")
    make_server(name="boreas")
    expect(page.locator("#result_list")).to_contain_text("boreas")
    assert page.evaluate("window.untouched") is True


def test_an_open_detail_and_the_focus_survive_updates(site: Site) -> None:
    last = {"attempt": 1, "exit_code": 1, "at": 1.0, "ran_s": 2.0, "command": ["engine"], "lines": ["bad model"]}
    instance = make_instance(exits=[last | {"cause": "It does not fit.", "remedy": "Use less."}])
    site.sign_in()
    page = site.open(f"deployments/deployment/{instance.deployment_id}/change/")
    site.wait_live()
    page.click("[data-test=exit] summary")
    expect(page.locator("[data-test=exit]")).to_contain_text("It does not fit.")
    Instance.objects.filter(pk=instance.pk).update(exits=[last | {"cause": "It is too large.", "remedy": ""}])
    expect(page.locator("[data-test=exit]")).to_contain_text("It is too large.")
    assert page.locator("[data-test=exit]").get_attribute("open") is not None


def test_deploying_with_a_preview_that_follows_the_fields(site: Site) -> None:
    make_server(name="atlas")
    version = make_model_version(name="smollm2")
    site.sign_in()
    page = site.open("deployments/deployment/add/")
    expect(page.locator("[data-test=preview]")).to_contain_text("Choose a model")
    page.fill("#id_name", "chat")
    page.select_option("#id_model_version", str(version.pk))
    expect(page.locator("[data-test=preview-servers]")).to_contain_text("atlas")
    page.fill("#id_p-parallel", "0")
    expect(page.locator("[data-test=preview-wrong]")).to_contain_text("Parallel requests")
    page.fill("#id_p-parallel", "2")
    expect(page.locator("[data-test=preview-summary]")).to_be_visible()
    page.click("[data-test=deploy]")
    expect(page.locator("[data-test=deployment-title]")).to_contain_text("chat")
    assert Deployment.objects.get().revision.parameters == {"parallel": 2}  # type: ignore[union-attr]


def test_a_deployment_becomes_ready_before_ones_eyes(site: Site) -> None:
    row = make_deployment(name="chat")
    site.sign_in()
    page = site.open(f"deployments/deployment/{row.pk}/change/")
    site.wait_live()
    page.evaluate("window.untouched = true")
    make_instance(deployment=row, server=make_server(name="atlas"))
    expect(page.locator("[data-test=ready-count]")).to_contain_text("1 / 1")
    expect(page.locator("[data-test=instance]")).to_contain_text("atlas")
    assert page.evaluate("window.untouched") is True


def test_a_key_is_shown_once_with_snippets(site: Site) -> None:
    make_project(name="support")
    site.sign_in()
    page = site.open("apikeys/apikey/add/")
    page.fill("#id_name", "bot")
    page.click("[data-test=create-key]")
    text = page.locator("[data-test=new-key]").inner_text()
    assert re.fullmatch(r"sk-stk-[a-z0-9]{8}-[0-9A-Za-z]{43}", text)
    for name in ("curl", "python", "javascript", "langchain", "env"):
        page.click(f"[data-test={name}-tab]")
        expect(page.locator(f"[data-test={name}-snippet]")).to_be_visible()
        expect(page.locator("[role=tabpanel]:visible")).to_have_count(1)
        assert text in page.locator(f"[data-test={name}-snippet]").inner_text()
    page.click("[data-test=key-done]")
    expect(page.locator("#result_list")).to_contain_text("bot")
    assert text not in page.content()


def test_revoking_a_key_asks_first(site: Site) -> None:
    key, _ = make_key(name="bot")
    site.sign_in()
    page = site.open(f"apikeys/apikey/{key.pk}/change/")
    page.click("[data-test=revoke-key]")
    page.click("[data-test=confirm-yes]")
    expect(page.locator("#content")).to_contain_text("revoked")
    assert ApiKey.objects.get().revoked_at is not None


def test_usage_comes_in_while_the_page_is_open(site: Site) -> None:
    key, _ = make_key(name="bot")
    site.sign_in()
    page = site.open("apikeys/usagehour/")
    site.wait_live()
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    UsageHour.objects.create(
        hour=hour,
        project=key.project,
        key=key,
        model="chat",
        status=200,
        requests=3,
        prompt_tokens=40,
        completion_tokens=2,
    )
    expect(page.locator("[data-test=usage-requests]")).to_have_text("3")
    expect(page.locator("[data-test=usage-table]")).to_contain_text("42")


@pytest.mark.parametrize("site", [DARK], indirect=True)
def test_dark_mode_is_dark(site: Site) -> None:
    page = site.sign_in()
    shade = page.evaluate(
        "() => { const c = document.createElement('canvas').getContext('2d');"
        "c.fillStyle = getComputedStyle(document.querySelector('#main')).backgroundColor; c.fillRect(0, 0, 1, 1);"
        "return Math.max(...c.getImageData(0, 0, 1, 1).data.slice(0, 3)); }"
    )
    assert shade < 90


@pytest.mark.parametrize("site", [PHONE], indirect=True)
def test_every_page_fits_a_phone(site: Site) -> None:
    server = make_server(name="a-server-with-quite-a-long-name.example.net", gpus=2)
    row = make_deployment(name="organisation/a-model-with-a-rather-long-public-name-v2")
    instance = make_instance(deployment=row, server=server, reason="x" * 120)
    key, _ = make_key(name="bot")
    site.sign_in()
    pages = [
        "",
        "fleet/server/",
        f"fleet/server/{server.pk}/change/",
        "fleet/server/add/",
        "models_registry/modelversion/",
        f"models_registry/modelversion/{instance.revision.model_version_id}/change/",
        "models_registry/modelversion/add/",
        "models_registry/storagelocation/",
        "models_registry/storagelocation/add/",
        f"models_registry/storagelocation/{builtin().pk}/change/",
        "deployments/deployment/",
        f"deployments/deployment/{row.pk}/change/",
        "deployments/deployment/add/",
        "deployments/event/",
        "apikeys/apikey/",
        f"apikeys/apikey/{key.pk}/change/",
        "apikeys/apikey/add/",
        "apikeys/project/",
        f"apikeys/project/{key.project_id}/change/",
        "apikeys/usagehour/",
        "playground/",
    ]
    too_wide = []
    for path in pages:
        site.open(path)
        if site.overflow_px() > 0:
            too_wide.append(path)
    assert too_wide == []


def test_the_keyboard_reaches_the_main_things_and_shows_where_it_is(site: Site) -> None:
    make_server(name="atlas")
    page = site.sign_in()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim().replace(/\\s+/g, ' ')"))
        if "atlas" in reached:
            break
    assert "atlas" in reached
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_every_control_of_the_forms_has_a_label(site: Site) -> None:
    make_model_version()
    make_project()
    site.sign_in()
    script = """() => [...document.querySelectorAll(
            '#content input:not([type=hidden]), #content select, #content textarea')]
        .filter((one) => !(one.labels && one.labels.length) && !one.getAttribute('aria-label')
                && !one.getAttribute('aria-labelledby')).map((one) => one.name)"""
    for path in (
        "deployments/deployment/add/",
        "apikeys/apikey/add/",
        "fleet/server/add/",
        "models_registry/modelversion/add/",
        "models_registry/storagelocation/add/",
    ):
        page = site.open(path)
        assert page.evaluate(script) == [], path


def test_a_page_says_that_it_is_cut_off_and_comes_back_by_itself(site: Site, master: Master) -> None:
    page = site.sign_in()
    site.wait_live()
    master.stop()
    expect(page.locator("#sk-connection")).to_contain_text("Reconnecting")
    make_server(name="atlas")
    master.start()
    expect(page.locator("[data-test=dashboard-servers]")).to_contain_text("atlas")
    expect(page.locator("#sk-connection")).to_be_hidden()
    site.complaints.clear()  # the browser logs each attempt that failed
