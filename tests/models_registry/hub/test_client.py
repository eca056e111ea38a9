"""A Hub as its own client sees it, and its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models_registry.errors import BadSource, RegistryError, SourceGone, SourceRefused, SourceUnreachable
from models_registry.hub.client import Hub
from tests.fakes.hub import FakeHub, HubFile, serving_hub
from tests.ports import free_port


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    made = FakeHub(tokens={"hf_good": {"org/private", "org/gated"}})
    files = {"config.json": HubFile(b"{}"), "model.safetensors": HubFile(b"w" * 1000, lfs=True)}
    made.repo("org/model", files, license="mit")
    made.repo("org/private", files, private=True)
    made.repo("org/renamed", files, moved_to="org/model")
    made.repo("org/wicked", {"../../etc/passwd": HubFile(b"")})
    with serving_hub(made):
        yield made


def test_a_model_is_described_with_every_file_and_hash(hub: FakeHub) -> None:
    found = Hub(hub.url).model("org/model")
    assert (found.commit, found.license, found.size) == (hub.repos["org/model"].refs["main"], "mit", 1002)
    config, weights = found.files
    assert (config.git_sha1, config.sha256) == (HubFile(b"{}").git_sha1, "")
    assert weights.sha256 == HubFile(b"w" * 1000).sha256
    assert Hub(hub.url).model("org/renamed").repo == "org/model"
    assert [hit.repo for hit in Hub(hub.url).search("model")] == ["org/model"]
    assert Hub(hub.url, "hf_good").model("org/private").private


@pytest.mark.parametrize(
    ("repo", "revision", "error", "remedy"),
    [
        ("org/nothing", "main", SourceGone, "Look at the name"),
        ("org/private", "main", SourceGone, "give a token"),
        ("org/model", "nowhere", SourceGone, "branch, a tag or a commit"),
        ("org/wicked", "main", BadSource, ""),
        ("../etc", "main", BadSource, "NAMESPACE/NAME"),
        ("a b", "main", BadSource, "NAMESPACE/NAME"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_to_do(
    hub: FakeHub, repo: str, revision: str, error: type[RegistryError], remedy: str
) -> None:
    with pytest.raises(error) as caught:
        Hub(hub.url).model(repo, revision)
    assert remedy in caught.value.remedy


def test_a_hub_that_is_away_is_told_so() -> None:
    with pytest.raises(SourceUnreachable) as caught:
        Hub(f"http://127.0.0.1:{free_port()}").model("org/model")
    assert "HF_ENDPOINT" in caught.value.remedy


def test_a_gated_model_says_how_to_get_it(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    def gated(*_: object, **__: object) -> None:
        import httpx2

        raise GatedRepoError("403", response=httpx2.Response(403, request=httpx2.Request("GET", hub.url)))

    monkeypatch.setattr(HfApi, "model_info", gated)
    with pytest.raises(SourceRefused) as caught:
        Hub(hub.url, "hf_other").model("org/gated")
    assert "accept the terms" in caught.value.remedy
