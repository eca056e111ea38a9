"""The page of imports in a real browser: every source is a click away, readable on a phone, and labelled."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from models_registry.models import ImportJob, ModelVersion
from tests.browser.conftest import Site
from tests.factories import make_model_version

pytestmark = pytest.mark.browser
SOURCES = ("urls", "s3", "modelscope", "files", "archive")
SHOTS = os.environ.get("STOKEHOLD_TEST_SCREENSHOTS", "")
UNLABELLED = """() => [...document.querySelectorAll(
    '#content input:not([type=hidden]), #content select, #content textarea')]
    .filter((one) => !(one.labels && one.labels.length) && !one.getAttribute('aria-label')).map((one) => one.name)"""


def shot(site: Site, name: str) -> None:
    if SHOTS:
        site.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.mark.parametrize(
    "site", [{}, {"viewport": {"width": 375, "height": 812}}], indirect=True, ids=["desk", "phone"]
)
def test_every_source_is_a_click_away(site: Site) -> None:
    site.sign_in()
    page = site.open("models_registry/modelversion/add/")
    for source in SOURCES:
        page.click(f"[data-test=from-{source}]")
        expect(page.locator(f"[data-test=from-{source}]")).to_have_attribute("aria-current", "page")
        assert page.evaluate(UNLABELLED) == []
        assert site.overflow_px() <= 0
        shot(site, f"import-{source}-{page.viewport_size['width']}")
    page.click("[data-test=bandwidth]")
    page.fill("#id_schedule", "22:00-06:00 unlimited, else 50 MB/s")
    shot(site, f"bandwidth-{page.viewport_size['width']}")
    page.click("[data-test=bandwidth-form] button")
    page = site.open("models_registry/modelversion/add/")
    expect(page.locator("[data-test=import-page]")).to_contain_text("else 50 MB/s (UTC)")


def test_an_import_is_put_before_others(site: Site) -> None:
    row = make_model_version()
    ModelVersion.objects.filter(pk=row.pk).update(state="importing", progress=0.4)
    job = ImportJob.objects.create(version=row, remote={"kind": "urls"}, paused=True, queued_at=row.created_at)
    site.sign_in()
    page = site.open(f"models_registry/modelversion/{row.pk}/change/")
    shot(site, "model-importing")
    page.fill("input[name=priority]", "5")
    page.click("[data-test=prioritize]")
    expect(page.locator("input[name=priority]")).to_have_value("5")
    job.refresh_from_db()
    assert job.priority == 5
    ModelVersion.objects.filter(pk=row.pk).update(state="ready")
    page.reload()
    expect(page.locator("[data-test=prioritize]")).to_be_hidden()
    expect(page.locator("[data-test=export]")).to_be_visible()
    shot(site, "model-ready")


@pytest.mark.parametrize(("source", "first"), [("archive", "#id_path"), ("files", "#id_name")])
def test_the_name_of_a_chosen_file_is_written_into_no_other_field(
    site: Site, tmp_path: Path, source: str, first: str
) -> None:
    (tmp_path / "x.tar").write_bytes(b"x")
    site.sign_in()
    page = site.open(f"models_registry/modelversion/add/?source={source}")
    page.set_input_files("#id_upload", tmp_path / "x.tar")
    expect(page.locator(first)).to_have_value("")  # so that it is not a path and an upload


def test_a_page_that_is_open_tells_what_came(site: Site) -> None:
    row = make_model_version()
    ModelVersion.objects.filter(pk=row.pk).update(state="importing", digest="")
    ImportJob.objects.create(version=row, remote={"kind": "urls"}, paused=True, queued_at=row.created_at)
    site.sign_in()
    page = site.open(f"models_registry/modelversion/{row.pk}/change/")
    expect(page.locator("[data-test=pause]")).to_have_text(re.compile("Go on"))
    expect(page.locator("[data-test=copy-to]")).to_be_hidden()
    expect(page.locator("[data-live='model:facts']")).not_to_contain_text("none")
    site.wait_live()
    ImportJob.objects.update(paused=False)  # somebody else did
    expect(page.locator("[data-test=pause]")).to_have_text(re.compile("Pause"))
    page.fill("textarea[name=notes]", "half a sen")
    ModelVersion.objects.filter(pk=row.pk).update(state="ready", digest=row.digest, flagged=True)
    expect(page.locator("[data-test=flagged]")).to_be_visible()
    expect(page.locator("[data-test=words]")).to_be_visible()
    expect(page.locator("[data-test=pin-open]")).to_be_visible()
    expect(page.locator("[data-test=copy-to]")).to_be_visible()
    expect(page.locator("textarea[name=notes]")).to_have_value("half a sen")
