"""A model from the Hub to an answer, by the admin alone in a real browser, with a worker killed on the way."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import browser as browser  # the fixture, for this folder too
from tests.e2e.stack import Stack
from tests.fakes.hub import FakeHub, HubFile, serving_hub
from tests.models_registry.factories import demo_model
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(420), pytest.mark.browser]
SHOTS = os.environ.get("STOKEHOLD_TEST_SCREENSHOTS", "")
REPO, FILE = "org/SmolLM2-135M-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    made = FakeHub()
    file = tmp_path_factory.mktemp("weights") / FILE
    file.write_bytes(demo_model().read_bytes() + os.urandom(64))  # the demo's own are in the store already
    weights = HubFile(file, lfs=True)
    made.repo(
        REPO, {FILE: weights, "SmolLM2-135M-Instruct.Q8_0.gguf": HubFile(b"other", lfs=True)}, license="apache-2.0"
    )
    with serving_hub(made):
        yield made


@pytest.fixture(scope="module")
def stack(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("hub") / "home", more={"HF_ENDPOINT": hub.url})
    try:
        made.up_with_demo()
        yield made
    finally:
        made.stop()


def test_a_model_goes_from_the_hub_to_an_answer(browser: Browser, stack: Stack, hub: FakeHub) -> None:
    held = stack.credentials
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(f"{held['admin_url']}login/")
    page.fill("#id_username", held["admin_user"])
    page.fill("#id_password", held["admin_password"])
    page.click("#login-form button[class*=primary]")
    page.wait_for_url(held["admin_url"])

    page.goto(f"{held['admin_url']}models_registry/modelversion/add/")
    page.click("[data-test=from-hub]")
    page.fill("#id_q", "smollm2")
    page.click("[data-test=hub-search] button")
    page.click(f"[data-test=hub-hits] >> text={REPO}")
    form = page.locator("[data-test=hub-fetch]")
    expect(form).to_contain_text("apache-2.0")
    expect(form.locator(f"input[value='{FILE}']")).to_be_attached()
    page.uncheck("input[value='SmolLM2-135M-Instruct.Q8_0.gguf']")
    page.check(f"input[value='{FILE}']")
    page.fill("#id_name", "from-the-hub")
    page.fill("#id_limit_mb", "8")
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/hub.png", full_page=True)
    page.click("[data-test=fetch]")

    told = page.locator("[data-test=fetching]")
    expect(told).to_contain_text(re.compile(r"MiB of 9\d\.\d MiB"), timeout=30_000)
    expect(page.locator("[data-test=fetching-files]")).to_contain_text(FILE)
    expect(page.locator("[data-test=deploy-this]")).to_be_hidden()
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/hub_fetching.png", full_page=True)
    wait_for(lambda: _fetched(stack) > 40_000_000, within_s=60, what="nearly half of it")
    worker = stack.pid("worker")
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    asked = len(hub.asked)
    expect(page.locator("#content")).to_contain_text("ready", timeout=120_000)
    again = [one.range.removeprefix("bytes=").split("-") for one in hub.asked[asked:] if one.host == "cdn"]
    assert sum(int(end) - int(start) for start, end in again) < 70_000_000  # what was synced is not fetched again
    (version,) = [row for row in stack.rows("/model-versions/") if row["model"] == "from-the-hub"]
    assert (version["state"], version["architecture"]) == ("ready", "llama")

    expect(page.locator("[data-test=pause]")).to_be_hidden()
    page.click("[data-test=deploy-this]")
    page.fill("#id_name", "hub-chat")
    expect(page.locator("[data-test=preview-summary]")).to_be_visible()
    page.click("[data-test=deploy]")
    expect(page.locator("[data-test=ready-count]")).to_contain_text("1 / 1", timeout=90_000)
    answer = stack.client(max_retries=4).chat.completions.create(
        model="hub-chat", messages=[{"role": "user", "content": "hi"}], max_tokens=5
    )
    assert answer.choices[0].message.content
    context.close()


def _fetched(stack: Stack) -> int:
    rows = [row for row in stack.rows("/model-versions/") if row["model"] == "from-the-hub"]
    return sum(row["fetching"]["done_bytes"] for row in rows if row["fetching"])
