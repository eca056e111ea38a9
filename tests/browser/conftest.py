"""A real Chromium over a real master."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.master import Master

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAME, PASSWORD = "operator", "correct horse battery"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium a module. Playwright keeps a loop in this thread, hence the leave to use the ORM beside it."""
    if not CHROMIUM.exists():
        pytest.fail("Chromium is not installed: apt-get install chromium")
    patch = pytest.MonkeyPatch()
    patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
    patch.undo()


@dataclass
class Site:
    """The admin in a browser, with all that it should not do noted down."""

    url: str
    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> Page:
        self.page.goto(f"{self.url}/admin/{path}")
        return self.page

    def sign_in(self) -> Page:
        page = self.open("login/")
        page.fill("#id_username", NAME)
        page.fill("#id_password", PASSWORD)
        page.click("#login-form button[class*=primary]")
        page.wait_for_url(f"{self.url}/admin/")
        return page

    def wait_live(self) -> None:
        self.page.wait_for_selector("html[data-live-at]", state="attached")

    def overflow_px(self) -> int:
        """How much wider than the window the page is."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(script))


@pytest.fixture
def site(browser: Browser, master: Master, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A signed-out browser; the test fails when the page logs an error or asks another host for anything."""
    # The master has its own hashers: this process knows only the quick one of tests.
    hashed = PBKDF2PasswordHasher().encode(PASSWORD, "salt", iterations=1000)
    User.objects.create(username=NAME, password=hashed, is_staff=True, is_superuser=True)
    options = getattr(request, "param", {})
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    page = context.new_page()
    page.set_default_timeout(15_000)
    site = Site(master.url, page, context)
    page.on("console", lambda message: site.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: site.complaints.append(str(error)))
    page.on("request", lambda asked: _note_foreign(site, asked.url))
    yield site
    page.goto("about:blank")
    context.close()
    if site.complaints:
        print(master.log()[-8000:])  # what the page does not tell
    assert site.complaints == []


def _note_foreign(site: Site, url: str) -> None:
    own = (site.url, site.url.replace("http", "ws"), "data:", "blob:", "about:")
    if not url.startswith(own):
        site.complaints.append(f"asked for {url}")
