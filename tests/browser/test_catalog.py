"""The catalog in a real browser: nothing is refused by the content policy, nothing is wider than the window."""

from __future__ import annotations

import os

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from fleet.reports import plain
from models_registry import aliases
from models_registry.inspect.signatures import Kind, Signature
from models_registry.models import AliasMove, ModelVersion
from tests.browser.conftest import Site
from tests.factories import make_deployment, make_model_version, make_server

pytestmark = pytest.mark.django_db(transaction=True)
FINDING = {"path": "evil.bin", "kind": "pickle", "imports": ["posix.system"], "dangerous": ["posix.system"], "note": ""}

DIFFERING = tuple(f"model-{number:05}-of-00020.safetensors" for number in range(1, 21))
SIGNATURES = (
    Signature(
        "model.sig",
        Kind.MODEL_SIGNING,
        signer="https://github.com/org/name/.github/workflows/sign.yml@refs/heads/main "
        "(https://token.actions.githubusercontent.com)",
        covered_count=31,
        differing=DIFFERING,
        differing_count=25,
        missing_count=4,
    ),
    Signature("SHA256SUMS", Kind.CHECKSUMS, covered_count=12, uncompared_count=2),
    Signature("SHA256SUMS.asc", Kind.OPENPGP, signed_file="SHA256SUMS", covered_count=1, uncompared_count=1),
    Signature("tokenizer.json.sigstore", Kind.SIGSTORE, note="It is too large to be read."),
)


def look(site: Site, name: str) -> None:
    """A picture of the page, where somebody asks for one."""
    if folder := os.environ.get("STOKEHOLD_PICTURES"):
        site.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def make_versions() -> tuple[ModelVersion, ModelVersion]:
    types = {"Q4_K": {"tensors": 180, "bytes": 4_100_000_000}, "F32": {"tensors": 65, "bytes": 1_000_000}}
    metadata = {"chat_template": True, "tools": True, "vocabulary": 151_936, "types": types}
    common = {"name": "qwen3-8b", "parameter_count": 8_030_000_000, "context_tokens": 131_072, "modality": "text"}
    one = make_model_version(**common, version="1", quantization="Q4_K_M", size_bytes=4_900_000_000, metadata=metadata)
    two = make_model_version(
        **common,
        version="2",
        quantization="Q8_0",
        size_bytes=8_500_000_000,
        metadata=metadata,
        license="llama3.1",
        gated=True,
        flagged=True,
        scan={"files": [FINDING], "signatures": plain(SIGNATURES)},
        imported_by="ann (key ci)",
        tags=" eu prod ",
    )
    return one, two


@pytest.mark.parametrize(
    "site", [{}, {"viewport": {"width": 390, "height": 844}}], indirect=True, ids=["wide", "phone"]
)
def test_a_version_s_page_and_the_comparison(site: Site) -> None:
    one, two = make_versions()
    make_server(), make_server()
    alias = aliases.set_alias(one, "prod", by="ann", now=timezone.now())
    make_deployment(name="chat", model_version=one, alias=alias)
    site.sign_in()
    wide = site.page.viewport_size["width"] > 1000
    page = site.open("models_registry/modelversion/")
    look(site, f"list-{wide}")
    assert site.overflow_px() == 0
    page = site.open(f"models_registry/modelversion/{two.pk}/change/")
    site.wait_live()
    expect(page.locator("[data-test=words]")).to_contain_text("8.0 B, Q8_0, 128 k context, 8.5 GB; fits on")
    expect(page.locator("[data-test=findings]")).to_contain_text("posix.system")
    expect(page.locator("[data-test=signatures]")).to_contain_text("25 differ")
    look(site, f"model-{wide}")
    assert site.overflow_px() == 0
    page.fill("#id_notes", "Better at tools.")
    page.click("[data-test=notes] button")
    expect(page.locator("#id_notes")).to_have_value("Better at tools.")
    page.click("[data-test=aliases] button:has-text('Move here')")
    expect(page.locator("[data-test=aliases]")).to_contain_text("this version")
    assert AliasMove.objects.filter(name="prod", to_version="2").exists()
    page.click("[data-test=license-waits] a")
    look(site, f"accept-{wide}")
    page.click("[data-test=confirm-yes]")
    expect(page.locator("[data-test=accepted]")).to_contain_text("Accepted by operator")
    page.click("[data-test=compare] button")
    expect(page.locator("[data-test=comparison]")).to_contain_text("Q4_K_M")
    look(site, f"compare-{wide}")
    assert site.overflow_px() == 0


def test_a_deployment_is_made_to_follow_an_alias(site: Site) -> None:
    one, _ = make_versions()
    make_server()
    alias = aliases.set_alias(one, "prod", by="ann", now=timezone.now())
    site.sign_in()
    page = site.open("deployments/deployment/add/")
    page.fill("#id_name", "chat")
    page.select_option("#id_alias", str(alias.pk))
    expect(page.locator("[data-test=preview]")).to_contain_text("would be placed")
    look(site, "deploy")
    page.click("[data-test=deploy]")
    expect(page.locator("[data-test=follows]")).to_have_text("Follows qwen3-8b@prod")
    look(site, "deployment")
