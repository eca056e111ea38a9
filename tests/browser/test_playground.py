"""The playground in a real browser, through a real master and gateway to an engine that does as told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from pytest_django import Settings

from apikeys.models import ApiKey, UsageHour
from tests.browser.conftest import NAME, Site
from tests.factories import make_deployment, make_project
from tests.fakes.engine import FakeEngine
from tests.master import Master, test_database_url
from tests.served import Served, serving
from tests.waiting import wait_for

pytestmark = pytest.mark.browser
PHONE = {"viewport": {"width": 375, "height": 812}}


@pytest.fixture
def served(transactional_db: None, settings: Settings, tmp_path: Path) -> Iterator[Served]:
    master = Master(tmp_path / "master", test_database_url())
    settings.CA_DIR = master.home.ca
    settings.KEY_PEPPER = master.home.secrets()["key_pepper"]
    with serving(tmp_path, master, FakeEngine(pause_s=0.02)) as running:
        yield running


@pytest.fixture
def master(served: Served) -> Master:
    """The one that the browser's `site` opens."""
    return served.master


@pytest.fixture
def page(site: Site) -> Page:
    """The playground, signed in, with one project."""
    make_project(name="support")
    site.sign_in()
    return site.open("playground/")


def ask(page: Page, text: str) -> None:
    page.fill("[data-test=play-text]", text)
    page.keyboard.press("Enter")


def test_a_conversation_shows_what_it_took_and_goes_on(page: Page, served: Served) -> None:
    ask(page, "Say hi")
    expect(page.locator("[data-test=fact-status]")).to_have_text("200 complete")
    expect(page.locator("[data-test=play-assistant]")).to_contain_text("Hello wörld ✓")
    expect(page.locator("[data-test=fact-ttft]")).to_contain_text("s")
    expect(page.locator("[data-test=fact-speed]")).to_contain_text("tokens/s")
    expect(page.locator("[data-test=fact-total]")).to_have_text("16")
    expect(page.locator("[data-test=fact-cached]")).to_have_text("3")
    expect(page.locator("[data-test=fact-request]")).to_contain_text("req-")
    ask(page, "And again")
    expect(page.locator("[data-test=play-assistant]")).to_have_count(2)
    expect(page.locator("[data-test=fact-status]")).to_have_text("200 complete")
    roles = [message["role"] for message in served.engine.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    wait_for(lambda: UsageHour.objects.filter(status=200).exists(), within_s=15, what="usage")
    assert ApiKey.objects.get().name == f"playground of {NAME}"


def test_settings_reach_the_engine_and_the_code_that_is_shown(page: Page, served: Served) -> None:
    page.fill("#play-system", "Be brief.")
    page.fill("#play-temperature", "0.2")
    page.fill("#play-max", "7")
    page.fill("#play-stop-words", "END\nSTOP")
    page.uncheck("[data-test=play-stream]")
    page.click("#play-more summary")
    page.fill("[data-test=play-schema]", '{"type": "object"}')
    ask(page, 'It\'s a "test"')
    expect(page.locator("[data-test=fact-status]")).to_have_text("200 complete")
    sent = served.engine.requests[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["max_tokens"], sent["stop"]) == (0.2, 7, ["END", "STOP"])
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert not sent.get("stream")
    curl = page.locator("[data-test=play-curl]").inner_text()
    assert "Bearer $STOKEHOLD_KEY" in curl
    assert "It'\\''s a" in curl
    page.click("[data-test=play-python-tab]")
    python = page.locator("[data-test=play-python]").inner_text()
    assert 'os.environ["STOKEHOLD_KEY"]' in python
    compile(python, "shown", "exec")
    assert "sk-stk-" not in page.content()


def test_stop_ends_it_at_the_engine_and_keeps_what_was_said(page: Page, served: Served) -> None:
    served.engine.words = ("word ",) * 3000
    ask(page, "Never end")
    expect(page.locator("[data-test=play-assistant]")).to_contain_text("word word")
    page.click("[data-test=play-stop]")
    expect(page.locator("[data-test=fact-status]")).to_have_text("stopped")
    wait_for(lambda: served.engine.active == 0, within_s=5, what="the engine's end")
    expect(page.locator("[data-test=play-assistant]")).to_contain_text("word word")


def test_a_refusal_is_told_with_its_code_and_what_to_do(page: Page, served: Served) -> None:
    served.engine.fail = (400, {"error": {"message": "maximum context length is 10 tokens", "code": 400}})
    ask(page, "Say hi")
    error = page.locator("[data-test=play-error]")
    expect(error).to_contain_text("400 context_length_exceeded")
    expect(error).to_contain_text("maximum context length")
    expect(page.locator("[data-test=play-assistant]")).to_have_count(0)
    served.engine.fail = None
    page.click("[data-test=play-again]")
    expect(page.locator("[data-test=play-assistant]")).to_contain_text("Hello")
    expect(error).to_be_hidden()


def test_a_stream_that_breaks_off_is_told(page: Page, served: Served) -> None:
    served.engine.cut_after = 3
    ask(page, "Say hi")
    expect(page.locator("[data-test=play-error]")).to_contain_text("engine_failed")
    expect(page.locator("[data-test=play-user]")).to_contain_text("Say hi")


def test_wrong_json_is_told_before_anything_is_sent(page: Page, served: Served) -> None:
    page.click("#play-more summary")
    page.fill("[data-test=play-schema]", "{oops")
    ask(page, "Say hi")
    expect(page.locator("[data-test=play-error]")).to_contain_text("not valid JSON")
    expect(page.locator("[data-test=play-text]")).to_have_value("Say hi")
    assert served.engine.requests == []


def test_a_gateway_that_is_away_is_told(page: Page, served: Served) -> None:
    served.stop_gateway()
    ask(page, "Say hi")
    expect(page.locator("[data-test=play-error]")).to_contain_text("gateway_away")


def test_signing_in_again_in_another_tab_lets_a_conversation_go_on(page: Page, site: Site) -> None:
    ask(page, "Say hi")
    expect(page.locator("[data-test=fact-status]")).to_have_text("200 complete")
    site.context.clear_cookies()
    ask(page, "And again")
    expect(page.locator("[data-test=play-error]")).to_contain_text("403")
    site.complaints.clear()  # the browser logs the refusal
    other = Site(site.url, site.context.new_page(), site.context)
    other.sign_in()
    page.click("[data-test=play-again]")
    expect(page.locator("[data-test=play-assistant]")).to_have_count(2)
    expect(page.locator("[data-test=play-error]")).to_be_hidden()


def test_what_a_model_says_is_text_and_never_markup(page: Page, served: Served) -> None:
    served.engine.words = ("<img src=x onerror=alert(1)>", "<b>bold</b>")
    ask(page, "<script>alert(2)</script>")
    expect(page.locator("[data-test=play-assistant]")).to_contain_text("<b>bold</b>")
    assert page.locator("#play-log img, #play-log b, #play-log script").count() == 0


def test_the_results_of_tools_go_back_one_by_one(page: Page, served: Served) -> None:
    calls = [
        {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in ("time", "weather")
    ]
    first = {"role": "assistant", "content": None, "tool_calls": calls}
    served.engine.fail = (200, {"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": first}]})
    served.engine.fail_times = 1
    page.uncheck("[data-test=play-stream]")
    ask(page, "How is it?")
    expect(page.locator("[data-test=play-assistant]")).to_contain_text("weather({})")
    expect(page.locator("#play-text-label")).to_have_text("Result of the tool time")
    ask(page, "noon")
    expect(page.locator("#play-text-label")).to_have_text("Result of the tool weather")
    ask(page, "fine")
    expect(page.locator("[data-test=play-assistant]")).to_have_count(2)
    expect(page.locator("[data-test=fact-status]")).to_have_text("200 complete")
    sent = served.engine.requests[-1]["messages"]
    assert [(one["role"], one.get("tool_call_id")) for one in sent[-2:]] == [("tool", "time"), ("tool", "weather")]


@pytest.mark.parametrize("site", [PHONE], indirect=True)
def test_it_fits_a_phone_and_says_why_a_model_is_not_ready(page: Page, site: Site) -> None:
    make_deployment(name="organisation/a-model-with-a-rather-long-public-name-v2")
    page.reload()
    page.select_option("[data-test=play-model]", index=1)
    expect(page.locator("#play-model-help")).not_to_be_empty()
    ask(page, "word" * 200)
    expect(page.locator("[data-test=play-error]")).to_contain_text("503 model_not_ready")
    assert site.overflow_px() == 0


def test_a_deployments_page_leads_to_its_model(page: Page, site: Site) -> None:
    row = make_deployment(name="team/another one")
    site.open(f"deployments/deployment/{row.pk}/change/")
    page.click("[data-test=try]")
    expect(page.locator("[data-test=play-model]")).to_have_value("team/another one")


def test_every_control_has_a_name(page: Page) -> None:
    script = """() => [...document.querySelectorAll(
            '#playground :is(input:not([type=hidden]), select, textarea, button)')]
        .filter((one) => !(one.labels && one.labels.length) && !one.textContent.trim() && !one.ariaLabel)
        .map((one) => one.id)"""
    assert page.evaluate(script) == []
