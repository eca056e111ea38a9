"""Our Hub agrees with the Hub's own client: what `huggingface_hub` finds and fetches there is what was put there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.fakes.hub import FakeHub, Fault, HubFile, serving_hub

CONFIG, WEIGHTS = b'{"model_type": "llama"}', os.urandom(3_000_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    made = FakeHub(tokens={"hf_good": {"org/gated", "org/private"}, "hf_other": set()})
    files = {"config.json": HubFile(CONFIG), "sub/model.safetensors": HubFile(WEIGHTS, lfs=True)}
    made.repo("org/model", files, license="mit")
    made.repo("org/gated", files, gated="manual")
    made.repo("org/private", files, private=True)
    made.repo("org/renamed", files, moved_to="org/model")
    with serving_hub(made):
        yield made


def api(hub: FakeHub, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def test_models_are_found_and_described(hub: FakeHub) -> None:
    found = [model.id for model in api(hub).list_models(search="model", limit=10)]
    assert found == ["org/model"]
    info = api(hub).model_info("org/model", files_metadata=True)
    assert info.siblings is not None
    told = {file.rfilename: file for file in info.siblings}
    weights = HubFile(WEIGHTS, lfs=True)
    assert told["sub/model.safetensors"].lfs is not None
    assert told["sub/model.safetensors"].lfs.sha256 == weights.sha256
    assert (told["config.json"].size, told["config.json"].lfs) == (len(CONFIG), None)
    assert told["config.json"].blob_id == HubFile(CONFIG).git_sha1
    assert info.sha == hub.repos["org/model"].refs["main"]
    assert "license:mit" in (info.tags or [])


def test_a_list_of_many_comes_in_pages(hub: FakeHub) -> None:
    for number in range(25):
        hub.repo(f"many/m{number:02}", {"config.json": HubFile(CONFIG)})
    assert len(list(api(hub).list_models(search="many/", limit=25))) == 25


def test_the_tree_and_the_branches(hub: FakeHub) -> None:
    repo = hub.repos["org/model"]
    first = repo.refs["main"]
    repo.tags["v1"] = first
    repo.push({"config.json": HubFile(b"{}")})
    assert {item.path for item in api(hub).list_repo_tree("org/model", revision="v1", recursive=True)} == {
        "config.json",
        "sub/model.safetensors",
    }
    refs = api(hub).list_repo_refs("org/model")
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    assert api(hub).model_info("org/model", revision=first[:8]).sha == first


def test_its_own_client_fetches_what_was_put_there(hub: FakeHub, tmp_path: Path) -> None:
    folder = snapshot_download("org/model", endpoint=hub.url, local_dir=tmp_path / "all", token=False)
    assert (Path(folder) / "sub/model.safetensors").read_bytes() == WEIGHTS
    assert (Path(folder) / "config.json").read_bytes() == CONFIG
    one = hf_hub_download("org/renamed", "config.json", endpoint=hub.url, local_dir=tmp_path / "one", token=False)
    assert Path(one).read_bytes() == CONFIG
    got = hf_hub_download(
        "org/private", "sub/model.safetensors", endpoint=hub.url, local_dir=tmp_path / "p", token="hf_good"
    )
    assert Path(got).read_bytes() == WEIGHTS
    assert not any(asked.authorization for asked in hub.asked if asked.host == "cdn")


def test_errors_are_the_hubs(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api(hub, "hf_other").model_info("org/nothing")
    with pytest.raises(RepositoryNotFoundError):
        api(hub).model_info("org/private")
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info("org/model", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "nothing.bin", endpoint=hub.url, local_dir=tmp_path, token=False)
    with pytest.raises(GatedRepoError):
        hf_hub_download("org/gated", "config.json", endpoint=hub.url, local_dir=tmp_path, token="hf_other")
    assert api(hub, "hf_good").model_info("org/gated").gated == "manual"


def test_ranges_and_addresses_that_expire(hub: FakeHub) -> None:
    url = f"{hub.url}/org/model/resolve/main/sub/model.safetensors"
    part = requests.get(url, headers={"Range": "bytes=100-199"}, timeout=10)
    assert (part.status_code, part.content) == (206, WEIGHTS[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(WEIGHTS)}"
    assert requests.get(url, headers={"Range": "bytes=-5"}, timeout=10).content == WEIGHTS[-5:]
    assert requests.get(url, headers={"Range": f"bytes={len(WEIGHTS)}-"}, timeout=10).status_code == 416
    hub.signed_for_s = -1
    assert requests.get(url, timeout=10).status_code == 403


def test_faults_come_as_often_as_they_were_asked_for(hub: FakeHub) -> None:
    url = f"{hub.url}/org/model/resolve/main/sub/model.safetensors"
    hub.faults = [Fault(status=429, retry_after="7"), Fault(flip_at=5), Fault(truncate_to=10), Fault(cut_after=1000)]
    busy = requests.get(url, timeout=10)
    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "7")
    flipped = requests.get(url, timeout=10).content
    assert [place for place in range(20) if flipped[place] != WEIGHTS[place]] == [5]
    assert requests.get(url, timeout=10).content == WEIGHTS[:10]
    with pytest.raises(requests.RequestException):
        _ = requests.get(url, timeout=10).content
    assert requests.get(url, timeout=10).content == WEIGHTS
    hub.faults = [Fault(ignore_range=True), Fault(pad=3)]
    assert requests.get(url, headers={"Range": "bytes=5-9"}, timeout=10).status_code == 200
    assert len(requests.get(url, timeout=10).content) == len(WEIGHTS) + 3
