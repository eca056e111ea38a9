"""The usage page in a real browser: charts by what is chosen, the same in numbers, by keyboard, dark and on a phone."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from apikeys.models import ApiKey, UsageHour
from apikeys.services import create_key
from tests.browser.conftest import Site
from tests.factories import make_key, make_project

pytestmark = pytest.mark.browser
PHONE_IN_THE_DARK = {"viewport": {"width": 375, "height": 812}, "color_scheme": "dark"}
USAGE = "apikeys/usagehour/"


def use(key: ApiKey, *, days_ago: int = 0, **fields: int | str) -> None:
    hour = timezone.now().replace(minute=0, second=0, microsecond=0) - dt.timedelta(days=days_ago)
    values = {"model": "chat", "status": 200, "requests": 4, "prompt_tokens": 100, "completion_tokens": 20}
    UsageHour.objects.create(hour=hour, project=key.project, key=key, **(values | fields))


@pytest.fixture
def page(site: Site) -> Page:
    bot, _ = make_key(project=make_project(name="support"), name="bot")
    nightly, _ = create_key(project=make_project(name="research"), name="nightly", now=timezone.now())
    use(bot)
    use(bot, days_ago=2, status=429, requests=3, prompt_tokens=0, completion_tokens=0)
    use(nightly, days_ago=1, model="large", prompt_tokens=900)
    return site.sign_in()


def drawn(page: Page, chart: str) -> dict[str, float]:
    """Sum of each set that a chart shows, by its label."""
    script = """(name) => {
        const chart = Chart.getChart(document.querySelector(`canvas[data-chart=${name}]`));
        return Object.fromEntries(chart.data.datasets.map(
            (set) => [set.label, set.data.reduce((sum, value) => sum + (value || 0), 0)]));
    }"""
    page.wait_for_function("Chart.getChart(document.querySelector('canvas[data-chart=requests]'))")
    return dict(page.evaluate(script, chart))


def test_charts_follow_the_filters_which_are_in_the_address(page: Page, site: Site) -> None:
    site.open(USAGE)
    assert drawn(page, "requests") == {"Requests": 11}
    assert drawn(page, "errors") == {"Failed requests": 3}
    page.select_option("#id_split", "project")
    page.wait_for_url("**split=project**")
    assert drawn(page, "requests") == {"research": 4, "support": 7}
    page.select_option("#id_model", "large")
    page.wait_for_url("**model=large**")
    assert drawn(page, "tokens") == {"research": 920}
    page.reload()
    assert page.input_value("#id_split") == "project"
    assert drawn(page, "tokens") == {"research": 920}


def test_the_numbers_of_the_charts_are_a_table_that_a_keyboard_opens(page: Page, site: Site) -> None:
    site.open(USAGE + "?split=key&days=7")
    page.focus("[data-test=chart-numbers] summary")
    page.keyboard.press("Enter")
    table = page.get_by_role("region", name="Numbers of the charts")
    expect(table.get_by_role("row")).to_have_count(4)
    expect(table.get_by_role("row").nth(1)).to_contain_text("bot")
    expect(table.get_by_role("row").nth(1)).to_contain_text("120")


def test_charts_take_in_what_is_used_while_the_page_is_open(page: Page, site: Site) -> None:
    site.open(USAGE + "?split=model")
    site.wait_live()
    assert drawn(page, "requests") == {"large": 4, "chat": 7}
    use(ApiKey.objects.get(name="bot"), model="new", prompt_tokens=5)
    page.wait_for_function(
        "Chart.getChart(document.querySelector('canvas[data-chart=requests]')).data.datasets.length === 3"
    )
    assert drawn(page, "requests") == {"large": 4, "chat": 7, "new": 4}


@pytest.mark.parametrize("site", [PHONE_IN_THE_DARK], indirect=True)
def test_it_fits_a_phone_with_its_numbers_open(page: Page, site: Site) -> None:
    site.open(USAGE + "?split=key&by=key")
    page.click("[data-test=chart-numbers] summary")
    assert site.overflow_px() == 0
    colour = page.evaluate(
        "Chart.getChart(document.querySelector('canvas[data-chart=requests]')).options.scales.x.ticks.color"
    )
    assert colour == "#9ca3af"  # the light one: for a dark page
