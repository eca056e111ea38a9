"""Our Hub agrees with the Hub's own client: what `huggingface_hub` is told of models, and who is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from tests.fakes.hub import FakeHub
from tests.fakes.hub_sample import CONFIG, FILES, SHA256, WEIGHTS, address, api, curl, git_sha1


def test_a_model_is_described_with_the_hashes_of_its_files(hub: FakeHub) -> None:
    info = api(hub).model_info("org/model", files_metadata=True)
    assert info.siblings is not None
    told = {file.rfilename: file for file in info.siblings}
    assert set(told) == set(FILES)
    weights, config = told["sub/model.safetensors"], told["config.json"]
    assert weights.lfs is not None
    assert (weights.size, weights.lfs.size, weights.lfs.sha256) == (len(WEIGHTS), len(WEIGHTS), SHA256)
    assert (config.size, config.lfs, config.blob_id) == (len(CONFIG), None, git_sha1(CONFIG))
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize {len(WEIGHTS)}\n".encode()
    assert (weights.blob_id, weights.lfs.pointer_size) == (git_sha1(pointer), len(pointer))
    assert info.sha == hub.repos["org/model"].refs["main"]
    assert (info.gated, info.private, info.author, info.downloads) == (False, False, "org", 7)
    assert "license:mit" in (info.tags or [])
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert info.used_storage == sum(map(len, FILES.values()))
    assert info.last_modified is not None


def test_a_description_may_be_asked_for_in_part(hub: FakeHub) -> None:
    plain = api(hub).model_info("org/model")
    assert [(file.size, file.lfs) for file in plain.siblings or ()] == [(None, None)] * len(FILES)
    part = requests.get(f"{hub.url}/api/models/org/model?expand[]=gated&expand[]=sha", timeout=10).json()
    assert set(part) == {"_id", "id", "gated", "sha"}
    assert api(hub).model_info("org/model", expand=["downloads", "usedStorage"]).downloads == 7


def test_a_search_lists_what_the_asker_may_know_of(hub: FakeHub) -> None:
    assert [model.id for model in api(hub).list_models(search="org")] == ["org/gated", "org/model"]
    seen = [model.id for model in api(hub, "hf_good").list_models(search="ORG priv")]
    assert seen == ["org/private"]
    assert [model.id for model in api(hub).list_models(filter="license:mit", author="org")] == ["org/model"]


def test_a_plain_search_tells_neither_gate_nor_date(hub: FakeHub) -> None:
    """As on the Hub: they come with `full` or `expand`."""
    [plain] = api(hub).list_models(search="gated")
    [full] = api(hub).list_models(search="gated", full=True)
    [expanded] = api(hub).list_models(search="gated", expand=["gated", "lastModified"])
    assert (plain.gated, plain.last_modified, plain.downloads, plain.private) == (None, None, 1234, False)
    assert full.gated == expanded.gated == "manual"
    assert full.last_modified == expanded.last_modified is not None


def test_lists_come_in_pages_that_link_to_the_next(hub: FakeHub) -> None:
    for number in range(25):
        hub.repo(f"many/m{number:02}", {"config.json": CONFIG}, downloads=number)
    hub.page_size = 10
    found = [model.id for model in api(hub).list_models(search="many/", sort="downloads")]
    assert found == [f"many/m{number:02}" for number in reversed(range(25))]
    assert len(list(api(hub).list_models(search="many/", limit=12))) == 12
    first = requests.get(f"{hub.url}/api/models?search=many/&limit=5", timeout=10)
    assert len(first.json()) == 5
    assert first.links["next"]["url"].startswith(f"{hub.url}/api/models?search=many/")
    hub.repo("org/wide", {f"{number:03}.txt": b"%d" % number for number in range(105)})
    assert len(list(api(hub).list_repo_tree("org/wide", recursive=True))) == 105
    hub.page_size = None
    asked = len(hub.asked)
    assert len(list(api(hub).list_repo_tree("org/wide", expand=True))) == 105
    assert len(hub.asked) == asked + 3  # 50 on a page


def test_the_tree_has_folders_and_files(hub: FakeHub) -> None:
    tree = {item.path: item for item in api(hub).list_repo_tree("org/model", recursive=True)}
    assert set(tree) == {*FILES, "sub", "sub/deeper"}
    weights = tree["sub/model.safetensors"]
    assert isinstance(weights, RepoFile)
    assert weights.lfs is not None
    assert (weights.size, weights.lfs.sha256) == (len(WEIGHTS), SHA256)
    assert {item.path for item in api(hub).list_repo_tree("org/model")} == {"README.md", "config.json", "sub"}
    below = {item.path for item in api(hub).list_repo_tree("org/model", "sub")}
    assert below == {"sub/model.safetensors", "sub/deeper"}
    expanded = {item.path: item for item in api(hub).list_repo_tree("org/model", expand=True)}
    commit = expanded["config.json"].last_commit
    assert commit is not None
    assert (commit.oid, commit.title) == (hub.repos["org/model"].refs["main"], "Initial commit")
    with pytest.raises(EntryNotFoundError):
        list(api(hub).list_repo_tree("org/model", "nowhere"))


def test_main_moves_and_old_commits_stay(hub: FakeHub, tmp_path: Path) -> None:
    repo = hub.repos["org/model"]
    first = repo.refs["main"]
    repo.tags["v1"] = first
    second = repo.change({"config.json": b"{}", "README.md": None})
    third = repo.push({"config.json": b"[]"}, branch="dev/new")
    refs = api(hub).list_repo_refs("org/model")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "dev/new": third}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1", "refs/tags/v1", first)]
    for revision, commit, content in (
        ("main", second, b"{}"),
        ("v1", first, CONFIG),
        (first, first, CONFIG),
        (first[:8], first, CONFIG),
        ("dev/new", third, b"[]"),
    ):
        assert api(hub).model_info("org/model", revision=revision).sha == commit
        got = hf_hub_download(
            "org/model", "config.json", revision=revision, endpoint=hub.url, cache_dir=tmp_path, token=False
        )
        assert Path(got).read_bytes() == content
        assert Path(got).parent.name == commit
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "README.md", endpoint=hub.url, cache_dir=tmp_path, token=False)


# -------------------------------------------------------------------------------------------------- who may


def test_a_private_model_is_there_for_those_let_in(hub: FakeHub, tmp_path: Path) -> None:
    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            api(hub, token).model_info("org/private")
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("org/private", "config.json", endpoint=hub.url, cache_dir=tmp_path, token=token)
    statuses = [(asked.status, bool(asked.authorization)) for asked in hub.asked if "private" in asked.path]
    assert set(statuses) == {(401, False), (404, True)}
    got = hf_hub_download("org/private", "sub/model.safetensors", endpoint=hub.url, cache_dir=tmp_path, token="hf_good")
    assert Path(got).read_bytes() == WEIGHTS


def test_who_may_not_know_gets_401_as_from_the_hub(hub: FakeHub) -> None:
    hub.bare_401 = True
    for repo in ("org/private", "org/nothing"):
        refused = requests.get(f"{hub.url}/api/models/{repo}", timeout=10)
        assert (refused.status_code, refused.json()) == (401, {"error": "Invalid username or password."})
        assert "X-Error-Code" not in refused.headers


def test_a_gated_model_is_described_to_all_and_sent_to_few(hub: FakeHub, tmp_path: Path) -> None:
    assert api(hub).model_info("org/gated", files_metadata=True).gated == "manual"
    assert len(list(api(hub).list_repo_tree("org/gated", recursive=True))) == len(FILES) + 2
    for token, status, words in ((False, 401, "Please log in"), ("hf_other", 403, "not in the authorized list")):
        with pytest.raises(GatedRepoError, match=words) as caught:
            hf_hub_download("org/gated", "config.json", endpoint=hub.url, cache_dir=tmp_path, token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            snapshot_download("org/gated", endpoint=hub.url, cache_dir=tmp_path, token=token)
    folder = snapshot_download("org/gated", endpoint=hub.url, cache_dir=tmp_path, token="hf_good")
    assert (Path(folder) / "config.json").read_bytes() == CONFIG
    hub.gated_trees = True
    with pytest.raises(GatedRepoError):
        list(api(hub).list_repo_tree("org/gated"))


def test_what_is_not_there_is_told_as_the_hub_does(hub: FakeHub, tmp_path: Path) -> None:
    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            api(hub, token).model_info("org/nothing")
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info("org/model", revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("org/model", revision="nowhere", endpoint=hub.url, cache_dir=tmp_path, token=False)
    with pytest.raises(RemoteEntryNotFoundError) as caught:
        hf_hub_download("org/model", "nothing.bin", endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert caught.value.response.headers["X-Repo-Commit"] == hub.repos["org/model"].refs["main"]
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        api(hub, "hf_wrong").model_info("org/model")
    assert not isinstance(refused.value, RepositoryNotFoundError)
    curl(f"{hub.url}/api/agent-harnesses", status="404")
    assert api(hub, "hf_good").whoami()["name"] == "tester"


def test_a_renamed_model_is_found_under_its_old_name(hub: FakeHub, tmp_path: Path) -> None:
    uid = hub.repos["org/model"].uid
    hub.rename("org/model", "new/model")
    info = api(hub).model_info("org/model", files_metadata=True)
    assert info.id == "new/model"
    assert requests.get(f"{hub.url}/api/models/org/model?expand=sha", timeout=10).json()["_id"] == uid
    moved = requests.get(f"{hub.url}/api/models/org/model/tree/main?recursive=true", allow_redirects=False, timeout=10)
    assert (moved.status_code, moved.headers["Location"]) == (307, "/api/models/new/model/tree/main?recursive=true")
    folder = snapshot_download("org/model", endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert (Path(folder) / "sub/model.safetensors").read_bytes() == WEIGHTS
    assert api(hub).model_info("NEW/Model").id == "new/model"
    assert [model.id for model in api(hub).list_models(search="model")] == ["new/model"]
    hub.repo("gpt2", {}, moved_to="new/model")
    assert api(hub).model_info("gpt2").id == "new/model"
    assert curl("-L", address(hub, "config.json", "gpt2")) == CONFIG
