"""Files of our Hub, fetched by the Hub's own client, by its command line and by curl, are what was put there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import requests
from huggingface_hub import hf_hub_download, snapshot_download

from tests.fakes.hub import FakeHub, HubFile, running_hub, synthetic
from tests.fakes.hub_sample import CONFIG, FILES, SHA256, WEIGHTS, address, curl, git_sha1


def test_its_own_client_fetches_a_whole_model(hub: FakeHub, tmp_path: Path) -> None:
    folder = Path(snapshot_download("org/model", endpoint=hub.url, cache_dir=tmp_path, token="hf_good"))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert (folder / "sub/model.safetensors").resolve().name == SHA256
    assert (folder / "config.json").resolve().name == git_sha1(CONFIG)
    assert hub.sent["sub/model.safetensors"] == len(WEIGHTS)
    assert any(asked.authorization for asked in hub.asked_for("config.json"))
    assert [asked.status for asked in hub.asked_for("sub/model.safetensors", "cdn")] == [200]
    assert not hub.leaks


def test_the_command_line_fetches_a_whole_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.resolve_cache = hub.gzip_text = True
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "h"), "HF_HUB_DISABLE_XET": "1"}
    command = [
        str(Path(sys.executable).parent / "hf"),
        "download",
        "org/private",
        "--local-dir",
        str(tmp_path / "model"),
    ]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "not found" in refused.stderr
    subprocess.run([*command, "--token", "hf_good"], env=environment, capture_output=True, check=True)
    assert {path: (tmp_path / "model" / path).read_bytes() for path in FILES} == FILES
    assert not hub.leaks


def test_a_small_file_comes_from_the_hub_itself(hub: FakeHub) -> None:
    answer = requests.get(address(hub, "config.json"), allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.content) == (200, CONFIG)
    headers = answer.headers
    assert headers["ETag"] == f'"{git_sha1(CONFIG)}"'
    assert headers["X-Repo-Commit"] == hub.repos["org/model"].refs["main"]
    assert (headers["Content-Length"], headers["Accept-Ranges"]) == (str(len(CONFIG)), "bytes")
    assert headers["RateLimit"] == '"resolvers";r=2999;t=300'
    same = requests.get(address(hub, "config.json"), headers={"If-None-Match": headers["ETag"]}, timeout=10)
    assert (same.status_code, same.content) == (304, b"")


def test_a_small_file_may_come_by_a_relative_redirect(hub: FakeHub, tmp_path: Path) -> None:
    hub.resolve_cache = True
    moved = requests.head(address(hub, "config.json"), timeout=10)
    assert moved.status_code == 307
    assert moved.headers["Location"].startswith("/api/resolve-cache/models/org/model/")
    got = hf_hub_download("org/model", "config.json", endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert Path(got).read_bytes() == CONFIG
    assert curl("-L", "--fail", address(hub, "sub/deeper/a%20file%20(1).txt")) == b"spaces\n"


def test_a_small_file_may_come_compressed_and_then_without_length_and_ranges(hub: FakeHub) -> None:
    hub.gzip_text = True
    headers = {"Accept-Encoding": "gzip", "Range": "bytes=2-5"}
    answer = requests.get(address(hub, "config.json"), headers=headers, timeout=10)
    assert (answer.status_code, answer.content, answer.headers["Content-Encoding"]) == (200, CONFIG, "gzip")
    assert "Content-Length" not in answer.headers
    plain = requests.get(address(hub, "config.json"), headers={**headers, "Accept-Encoding": "identity"}, timeout=10)
    assert (plain.status_code, plain.content) == (206, CONFIG[2:6])


def test_a_large_file_is_sent_elsewhere_under_another_etag(hub: FakeHub) -> None:
    """Its sha256 is told by the redirect only; the CDN's ETag has 64 digits too and is none."""
    answer = requests.head(address(hub), timeout=10)
    headers = answer.headers
    assert (answer.status_code, headers["X-Linked-Size"]) == (302, str(len(WEIGHTS)))
    assert headers["X-Linked-ETag"] == f'"{SHA256}"'
    assert headers["X-Repo-Commit"] == hub.repos["org/model"].refs["main"]
    there = urlsplit(headers["Location"])
    assert (there.hostname, there.port) == ("localhost", hub.cdn_port)
    sent = requests.get(headers["Location"], timeout=10)
    assert sent.content == WEIGHTS
    assert len(sent.headers["ETag"].strip('"')) == 64
    assert sent.headers["ETag"] != headers["X-Linked-ETag"]
    assert "X-Linked-Size" not in sent.headers


@pytest.mark.parametrize("path", ["sub/model.safetensors", "config.json"])
@pytest.mark.parametrize(
    ("span", "start", "end"),
    [("5-9", 5, 10), ("0-0", 0, 1), ("7-", 7, None), ("-4", -4, None), ("3-99999999", 3, None), ("-99999999", 0, None)],
)
def test_curl_gets_the_ranges_it_asks_for(hub: FakeHub, path: str, span: str, start: int, end: int | None) -> None:
    assert curl("-L", "--fail", "-r", span, address(hub, path)) == FILES[path][start:end]


def test_ranges_that_are_not_there_or_no_longer_the_same(hub: FakeHub) -> None:
    size = len(WEIGHTS)
    curl("-L", "-r", f"{size}-", address(hub), status="416")
    beyond = requests.get(address(hub), headers={"Range": f"bytes={size}-"}, timeout=10)
    assert beyond.headers["Content-Range"] == f"bytes */{size}"
    location = requests.head(address(hub), timeout=10).headers["Location"]
    whole = requests.get(location, timeout=10)
    part = {"Range": "bytes=100-199"}
    same = requests.get(location, headers={**part, "If-Range": whole.headers["ETag"]}, timeout=10)
    assert (same.status_code, same.headers["Content-Range"]) == (206, f"bytes 100-199/{size}")
    assert same.content == WEIGHTS[100:200]
    other = requests.get(location, headers={**part, "If-Range": f'"{SHA256}"'}, timeout=10)
    assert (other.status_code, other.content) == (200, WEIGHTS)
    for odd in ("bytes=9-5", "bytes=a-b", "lines=1-2", "bytes=1-2,5-6", "bytes=-"):
        assert requests.get(location, headers={"Range": odd}, timeout=10).status_code == 200


def test_addresses_on_the_cdn_are_signed_and_run_out(hub: FakeHub) -> None:
    clock = [1_000_000.0]
    hub.now, hub.signed_for_s = lambda: clock[0], 60
    location = requests.head(address(hub), timeout=10).headers["Location"]
    clock[0] += 59
    curl(location, status="200")
    curl(location.replace("Signature=", "Signature=0"), status="403")
    curl(location.replace("Expires=1000060", "Expires=2000000"), status="403")
    clock[0] += 1
    curl(location, status="403")
    assert b"AccessDenied" in curl(location)
    curl("-L", address(hub), status="200")


def test_a_token_that_follows_to_the_cdn_is_noticed(hub: FakeHub) -> None:
    bearer = ("-H", "Authorization: Bearer hf_good")
    curl("-L", *bearer, address(hub), status="200")
    assert not hub.leaks
    curl("-L", "--location-trusted", *bearer, address(hub), status="200")
    assert [asked.file for asked in hub.leaks] == ["sub/model.safetensors"]
    assert urlsplit(hub.cdn_url).netloc == hub.leaks[0].address != urlsplit(hub.url).netloc


# -------------------------------------------------------------------------------------------------- large ones


def test_a_file_larger_than_the_memory_is_made_when_it_is_read(hub: FakeHub) -> None:
    size = 1 << 40
    hub.repo("org/huge", {"model.gguf": synthetic(size, seed=3, sha256="0" * 64)})
    url = address(hub, "model.gguf", "org/huge")
    assert requests.head(url, timeout=10).headers["X-Linked-Size"] == str(size)
    near, far = curl("-L", "-r", "0-999999", url), curl("-L", "-r", f"{size - 1_000_000}-", url)
    assert len(near) == len(far) == 1_000_000
    assert near != far
    assert curl("-L", "-r", f"{size - 1000}-{size - 500}", url) == far[-1000:-499]


def test_synthetic_content_is_the_same_however_it_is_cut() -> None:
    made = synthetic(5_000_000, seed=1)
    whole = made.read(0, 5_000_000)
    assert b"".join(made.read(at, min(333_333, 5_000_000 - at)) for at in range(0, 5_000_000, 333_333)) == whole
    assert whole != synthetic(5_000_000, seed=2).read(0, 5_000_000)
    pieces = {whole[at : at + 100_000] for at in range(0, 5_000_000, 100_000)}
    assert len(pieces) == 50  # no two are alike: one in the wrong place shows
    assert HubFile(made).sha256 == hashlib.sha256(whole).hexdigest()


def test_a_file_on_disk_is_sent_from_there(hub: FakeHub, tmp_path: Path) -> None:
    disk = tmp_path / "weights"
    disk.write_bytes(os.urandom(20_000_000))
    hub.repo("org/disk", {"model.gguf": disk, "notes.txt": HubFile(disk, lfs=False)})
    for path in ("model.gguf", "notes.txt"):
        got = hf_hub_download("org/disk", path, endpoint=hub.url, cache_dir=tmp_path / "cache", token=False)
        assert Path(got).read_bytes() == disk.read_bytes()
        url = address(hub, path, "org/disk")
        assert curl("-L", "-r", "9000001-19000000", url) == disk.read_bytes()[9_000_001:19_000_001]
        assert hub.sent[path] == 30_000_000
    hub.bytes_per_second = 1e9
    assert curl("-L", "-r", "-1000", url) == disk.read_bytes()[-1000:]


@pytest.mark.asyncio
async def test_it_runs_in_the_loop_of_a_test_and_comes_back_after_an_outage() -> None:
    hub = FakeHub()
    hub.repo("org/model", FILES)
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with running_hub(hub, port=hub.port, cdn_port=hub.cdn_port), session.get(address(hub)) as answer:
                assert await answer.read() == WEIGHTS
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.get(address(hub))
