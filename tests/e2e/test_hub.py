"""A model from the Hub over the master and two servers to an answer, by the admin alone in a real browser.

In the middle of each step a process is killed: the worker, the agent, the master, the controller, the agent again.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import browser as browser  # the fixture, for this folder too
from tests.e2e.stack import Stack
from tests.fakes.hub import FakeHub, HubFile, serving_hub
from tests.models_registry.factories import demo_model
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(420), pytest.mark.browser]
SHOTS = os.environ.get("STOKEHOLD_TEST_SCREENSHOTS", "")
NAME = "from-the-hub"
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


@pytest.fixture(scope="module")
def second(stack: Stack) -> Iterator[Path]:
    """Home of another agent, on a disk of its own: on the master's it would link the files, and fetch nothing."""
    with tempfile.TemporaryDirectory(prefix="stk-second-", dir="/dev/shm") as name:
        folder = Path(name) / "agent"
        stack.start_second_agent(folder)
        try:
            yield folder
        finally:
            stack.stop_second_agent(folder)


@pytest.fixture(scope="module")
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """The admin, logged in."""
    held = stack.credentials
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    made.set_default_timeout(30_000)
    made.goto(f"{held['admin_url']}login/")
    made.fill("#id_username", held["admin_user"])
    made.fill("#id_password", held["admin_password"])
    made.click("#login-form button[class*=primary]")
    made.wait_for_url(held["admin_url"])
    yield made
    context.close()


def test_a_model_goes_from_the_hub_to_an_answer(stack: Stack, hub: FakeHub, page: Page, second: Path) -> None:
    _from_the_hub_to_the_master(stack, hub, page)
    _from_the_master_to_a_server(stack, page, second)
    _from_the_servers_to_an_answer(stack, page, second)


def _from_the_hub_to_the_master(stack: Stack, hub: FakeHub, page: Page) -> None:
    """Its worker is killed half way."""
    page.goto(f"{stack.credentials['admin_url']}models_registry/modelversion/add/")
    page.click("[data-test=from-hub]")
    page.fill("#id_q", "smollm2")
    page.click("[data-test=hub-search] button")
    page.click(f"[data-test=hub-hits] >> text={REPO}")
    form = page.locator("[data-test=hub-fetch]")
    expect(form).to_contain_text("apache-2.0")
    expect(form.locator(f"input[value='{FILE}']")).to_be_attached()
    page.uncheck("input[value='SmolLM2-135M-Instruct.Q8_0.gguf']")
    page.check(f"input[value='{FILE}']")
    page.fill("#id_name", NAME)
    page.fill("#id_limit_mb", "8")
    shoot(page, "hub")
    page.click("[data-test=fetch]")

    told = page.locator("[data-test=fetching]")
    expect(told).to_contain_text(re.compile(r"MiB of 9\d\.\d MiB"), timeout=30_000)
    expect(page.locator("[data-test=fetching-files]")).to_contain_text(FILE)
    expect(page.locator("[data-test=deploy-this]")).to_be_hidden()
    shoot(page, "hub_fetching")
    wait_for(lambda: _fetched(stack) > 40_000_000, within_s=60, what="nearly half of it")
    _kill(stack.pid("worker"))
    asked = len(hub.asked)
    expect(page.locator("#content")).to_contain_text("ready", timeout=120_000)
    again = [one.range.removeprefix("bytes=").split("-") for one in hub.asked[asked:] if one.host == "cdn"]
    assert sum(int(end) - int(start) for start, end in again) < 70_000_000  # what was synced is not fetched again
    version = _version(stack)
    assert (version["state"], version["architecture"]) == ("ready", "llama")
    expect(page.locator("[data-test=pause]")).to_be_hidden()


def _from_the_master_to_a_server(stack: Stack, page: Page, second: Path) -> None:
    """The agent is killed half way, and then the master."""
    here = page.url
    (server,) = [row for row in stack.rows("/servers/") if row["name"] == "second"]
    page.goto(f"{stack.credentials['admin_url']}fleet/server/{server['id']}/change/")
    page.click("text=Change the rules for model files")
    page.fill("#id_download_mb", "10")
    page.click("[data-test=save-cache]")
    expect(page.locator("body")).to_contain_text("Rules for model files of second saved")

    page.goto(here)
    page.click("[data-test=pin-open]")
    page.select_option("#id_server", label="second")
    page.click("[data-test=pin]")
    row = page.locator("[data-test=model-server][data-server=second]")
    expect(row.locator("[role=progressbar], .sk-bar, progress").first).to_be_visible()
    wait_for(lambda: _share(stack) > 0.25, within_s=60, what="a quarter of it")
    shoot(page, "model_pinned")
    agent = stack.others[-1]
    agent.kill()
    agent.wait()
    there = sum(path.stat().st_blocks * 512 for path in (second / "blobs" / "partial").glob("*.part"))
    assert there > 20_000_000
    stack.others.remove(agent)
    stack.run_second_agent(second)
    wait_for(lambda: _share(stack) > 0.5, within_s=60, what="half of it")
    _kill(stack.pid("master"))
    expect(row).to_contain_text("whole", timeout=90_000)
    (model,) = _cached(stack)
    assert model["from_master_bytes"] + model["from_peers_bytes"] < 85_000_000, "what was there stayed"
    shoot(page, "model_on_servers")


def _from_the_servers_to_an_answer(stack: Stack, page: Page, second: Path) -> None:
    """The controller is killed while it places, and an agent while its engine starts."""
    page.click("[data-test=deploy-this]")
    page.fill("#id_name", "hub-chat")
    page.fill("#id_replicas", "2")
    expect(page.locator("[data-test=preview-summary]")).to_be_visible()
    page.click("[data-test=deploy]")
    _kill(stack.pid("controller"))
    wait_for(lambda: len(_instances(stack)) == 2, within_s=60, what="both instances are placed")
    wait_for(lambda: (second / "instances").is_dir() and any((second / "instances").iterdir()), within_s=60)
    agent = stack.others[-1]
    agent.kill()
    agent.wait()
    stack.others.remove(agent)
    stack.run_second_agent(second)
    expect(page.locator("[data-test=ready-count]")).to_contain_text("2 / 2", timeout=90_000)
    shoot(page, "hub_deployed")
    names = {row["server_name"] for row in _instances(stack)}
    assert "second" in names, names
    assert len(names) == 2, names
    answer = stack.client(max_retries=4).chat.completions.create(
        model="hub-chat", messages=[{"role": "user", "content": "hi"}], max_tokens=5
    )
    assert answer.choices[0].message.content


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def _kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _version(stack: Stack) -> dict[str, Any]:
    (version,) = [row for row in stack.rows("/model-versions/") if row["model"] == NAME]
    return version


def _cached(stack: Stack) -> list[dict[str, Any]]:
    (server,) = [row for row in stack.rows("/servers/") if row["name"] == "second"]
    models = (server["cache"] or {}).get("models", [])
    return [model for model in models if model["model_name"].startswith(f"{NAME}:")]


def _share(stack: Stack) -> float:
    return max((model["progress"] for model in _cached(stack)), default=0.0)


def _instances(stack: Stack) -> list[dict[str, Any]]:
    return [row for row in stack.instances() if row["deployment_name"] == "hub-chat"]


def _fetched(stack: Stack) -> int:
    rows = [row for row in stack.rows("/model-versions/") if row["model"] == NAME]
    return sum(row["fetching"]["done_bytes"] for row in rows if row["fetching"])
