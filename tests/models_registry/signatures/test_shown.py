"""Signatures from the import to the page: kept, shown, and what differs told once."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.urls import reverse
from structlog.testing import capture_logs

from models_registry.models import ModelVersion
from tests.models_registry.factories import make_version, write_gguf
from tests.models_registry.signatures.parts import KEY, signed_model

pytestmark = pytest.mark.django_db
NOT_VERIFIED = "not verified against a trust root"


def shown(client, version: ModelVersion) -> dict:
    return client.get(f"/api/v1/model-versions/{version.pk}/").json()


def page(client, version: ModelVersion) -> str:
    answer = client.get(reverse("admin:models_registry_modelversion_change", args=[version.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.fixture
def altered(tmp_path):
    root = signed_model(tmp_path)
    (root / "weights.txt").write_text("others")
    return root


def test_a_signature_is_shown_by_page_and_api(admin_client, tmp_path):
    version = make_version(signed_model(tmp_path))
    (one,) = shown(admin_client, version)["signatures"]
    assert one == {
        "path": "model.sig",
        "kind": "model_signing",
        "signer": KEY,
        "signed_file": "",
        "covered_count": 3,
        "differing": [],
        "differing_count": 0,
        "uncompared_count": 0,
        "missing_count": 0,
        "note": "",
    }
    text = page(admin_client, version)
    for words in (
        'data-test="signatures"',
        "model signature (OpenSSF)",
        KEY,
        "names 3 of them, with the sha256",
        NOT_VERIFIED,
    ):
        assert words in text
    assert "differ" not in text.partition('data-test="signatures"')[2].partition("</table>")[0]


def test_what_differs_is_told_once_and_the_import_goes_on(admin_client, altered):
    with capture_logs() as logs:
        version = make_version(altered)
    told = [one for one in logs if one["event"] == "model.digests_differ"]
    assert [(one["log_level"], one["signatures"], one["files"]) for one in told] == [
        ("warning", ["model.sig"], ["weights.txt"])
    ]
    assert version.state == "ready"
    assert shown(admin_client, version)["signatures"][0]["differing"] == ["weights.txt"]
    text = page(admin_client, version)
    assert '<span class="sk-badge sk-bad"><i aria-hidden="true"></i>1 differs</span>' in text
    with capture_logs() as logs:
        call_command("inspect_models")
    assert "model.digests_differ" not in [one["event"] for one in logs]


def test_a_whole_version_is_told_of_by_no_warning(tmp_path):
    with capture_logs() as logs:
        make_version(signed_model(tmp_path))
    assert "model.digests_differ" not in [one["event"] for one in logs]


def test_versions_from_before_show_nothing_until_they_are_read_again(admin_client, altered, capsys):
    version = make_version(altered)
    for scan in (None, {"files": []}):
        ModelVersion.objects.update(scan=scan)
        assert shown(admin_client, version)["signatures"] is None
        assert 'data-test="signatures"' not in page(admin_client, version)
    call_command("inspect_models")
    assert "tiny:1: other, differs from its signatures or checksums" in capsys.readouterr().out
    assert shown(admin_client, version)["signatures"][0]["differing_count"] == 1


def test_a_version_without_signatures_shows_none(admin_client, tmp_path):
    version = make_version(write_gguf(tmp_path))
    assert shown(admin_client, version)["signatures"] == []
    assert 'data-test="signatures"' not in page(admin_client, version)


def test_a_hostile_signature_is_shown_as_text(admin_client, tmp_path):
    root = signed_model(tmp_path)
    (root / "model.sig").write_text('{"mediaType": "<script>alert(1)</script>\\u0000"}')
    (root / "<b>.asc").write_text("-----BEGIN PGP SIGNATURE-----")
    (root / "SHA256SUMS").write_text("\0" * 100 + "0" * 64 + "  weights.txt\n" + "0" * 64 + "  \0\n")
    version = make_version(root)
    kinds = {one["path"]: one["kind"] for one in shown(admin_client, version)["signatures"]}
    assert kinds == {"<b>.asc": "openpgp", "SHA256SUMS": "checksums", "model.sig": "sigstore"}
    text = page(admin_client, version)
    assert "&lt;b&gt;.asc" in text
    assert "<b>.asc" not in text
