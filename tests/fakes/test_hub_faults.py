"""What goes wrong at our Hub on demand goes wrong as it does in the world, seen by clients that are not ours."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import requests
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from tests.fakes.hub import Asked, FakeHub, Fault, running_hub
from tests.fakes.hub_sample import CONFIG, FILES, WEIGHTS, address, api, sample_hub

PATH = "sub/model.safetensors"


@pytest.fixture
def location(hub: FakeHub) -> str:
    """The signed address of the large file."""
    return requests.head(address(hub), timeout=10).headers["Location"]


def got_before_it_broke(url: str) -> tuple[bytes, str]:
    """The body as far as a plain socket got it, and how it ended: `reset`, `closed`, or `open`."""
    there = urlsplit(url)
    body = b""
    with socket.create_connection((there.hostname, there.port), timeout=1) as connection:
        connection.sendall(f"GET {there.path}?{there.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        try:
            while piece := connection.recv(1 << 20):
                body += piece
            end = "closed"
        except ConnectionResetError:
            end = "reset"
        except TimeoutError:
            end = "open"
    return body.partition(b"\r\n\r\n")[2], end


def test_a_status_comes_as_often_as_asked_for_and_where(hub: FakeHub) -> None:
    hub.faults = [
        Fault(at="hub", status=503, times=2, retry_after="7"),
        Fault("*.json", status=500),
        Fault(at="api", path="/api/models/org/model", status=502),
    ]
    busy = [requests.head(address(hub), timeout=10) for _ in range(3)]
    assert [(answer.status_code, answer.headers.get("Retry-After")) for answer in busy] == [
        (503, "7"),
        (503, "7"),
        (302, None),
    ]
    assert requests.get(address(hub), timeout=10).content == WEIGHTS
    assert [requests.get(address(hub, "config.json"), timeout=10).status_code for _ in range(2)] == [500, 200]
    assert [requests.get(f"{hub.url}/api/models/org/model", timeout=10).status_code for _ in range(2)] == [502, 200]
    assert [fault.times for fault in hub.faults] == [0, 0, 0]
    assert [asked.status for asked in hub.asked if asked.fault] == [503, 503, 500, 502]


def test_a_limit_of_requests_is_told_as_the_hub_tells_it(hub: FakeHub) -> None:
    hub.faults = [Fault(at="api", status=429, rate_reset_s=55)]
    with pytest.raises(HfHubHTTPError, match=r"(?s)'api' rate limit.*Retry after 55 seconds \(0/500"):
        api(hub).model_info("org/model")
    assert api(hub).model_info("org/model").id == "org/model"


def test_a_fault_may_let_some_pass_first_or_never_end(hub: FakeHub, location: str) -> None:
    hub.faults = [Fault(PATH, skip=2, status=500), Fault(PATH, skip=1, times=-1, status=403)]
    assert [requests.get(location, timeout=10).status_code for _ in range(6)] == [200, 403, 500, 403, 403, 403]


def test_a_hook_decides_by_the_request(hub: FakeHub, location: str) -> None:
    def first_part_fails(asked: Asked) -> Fault | None:
        return Fault(status=500) if asked.range.startswith("bytes=0-") else None

    hub.hook = first_part_fails
    statuses = {span: requests.get(location, headers={"Range": span}, timeout=10).status_code for span in SPANS}
    assert statuses == {"bytes=0-9": 500, "bytes=10-19": 206}


SPANS = ("bytes=0-9", "bytes=10-19")


@pytest.mark.parametrize("count", [0, 1, 1000, 2_000_000])
def test_a_connection_is_reset_after_so_many_bytes(hub: FakeHub, location: str, count: int) -> None:
    hub.faults = [Fault(PATH, cut_after=count)]
    assert got_before_it_broke(location) == (WEIGHTS[:count], "reset")
    assert hub.sent[PATH] == count
    hub.faults = [Fault("config.json", cut_after=5)]
    assert got_before_it_broke(address(hub, "config.json")) == (CONFIG[:5], "reset")


def test_the_hubs_own_client_goes_on_after_a_broken_body(hub: FakeHub, tmp_path: Path) -> None:
    """When the connection is closed; a reset it takes for the end."""
    hub.faults = [Fault(PATH, end_after=1_000_000), Fault(PATH, end_after=500_000)]
    got = hf_hub_download("org/model", PATH, endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert Path(got).read_bytes() == WEIGHTS
    assert len(hub.asked_for(PATH, "cdn")) == 3


def test_a_body_may_end_in_order_before_its_time(hub: FakeHub, location: str) -> None:
    hub.faults = [Fault(PATH, end_after=1000), Fault(PATH, truncate_to=1000)]
    assert got_before_it_broke(location) == (WEIGHTS[:1000], "closed")
    short = requests.get(location, timeout=10)
    assert (short.content, short.headers["Content-Length"]) == (WEIGHTS[:1000], "1000")


def test_lengths_lie(hub: FakeHub, location: str) -> None:
    size = len(WEIGHTS)
    hub.faults = [Fault(pad=3), Fault(content_length=10), Fault(content_length=size + 10)]
    padded = requests.get(location, timeout=10)
    assert padded.content == WEIGHTS + b"\0\0\0"
    assert requests.get(location, timeout=10).content == WEIGHTS[:10]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = requests.get(location, timeout=10).content
    part = {"Range": "bytes=10-19"}
    hub.faults = [Fault(pad=5)]
    padded = requests.get(location, headers=part, timeout=10)
    assert (padded.content, padded.headers["Content-Range"]) == (WEIGHTS[10:20] + bytes(5), f"bytes 10-19/{size}")


@pytest.mark.parametrize("at", [0, 1_234_567, 2_999_999])
def test_one_byte_arrives_wrong_for_whoever_asks_for_it(hub: FakeHub, location: str, at: int) -> None:
    hub.faults = [Fault(PATH, flip_at=at)]
    beside = at + 10 if at + 20 < len(WEIGHTS) else at - 100
    other = requests.get(location, headers={"Range": f"bytes={beside}-{beside + 9}"}, timeout=10)
    assert other.content == WEIGHTS[beside : beside + 10]
    content = requests.get(location, timeout=10).content
    assert content == WEIGHTS[:at] + bytes([WEIGHTS[at] ^ 0xFF]) + WEIGHTS[at + 1 :]
    assert requests.get(location, timeout=10).content == WEIGHTS


def test_a_range_may_be_ignored(hub: FakeHub, location: str) -> None:
    hub.faults = [Fault(PATH, ignore_range=True)]
    assert requests.get(location, timeout=10).content == WEIGHTS
    answers = [requests.get(location, headers={"Range": "bytes=5-9"}, timeout=10) for _ in range(2)]
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, WEIGHTS), (206, WEIGHTS[5:10])]
    assert "Content-Range" not in answers[0].headers


def test_a_body_or_an_answer_may_stall(hub: FakeHub, location: str) -> None:
    hub.faults = [Fault(PATH, stall_after=1000), Fault(PATH, hang=True)]
    assert got_before_it_broke(location) == (WEIGHTS[:1000], "open")
    assert got_before_it_broke(location) == (b"", "open")
    assert hub.asked[-1].status == 0
    assert requests.get(location, timeout=10).content == WEIGHTS


def test_a_redirect_may_lead_to_itself(hub: FakeHub) -> None:
    hub.faults = [Fault(at="hub", redirect_to="loop", times=-1)]
    done = subprocess.run(["curl", "-sSL", "--max-redirs", "9", address(hub)], capture_output=True, check=False)
    assert done.returncode == 47  # too many redirects
    assert len(hub.asked_for(PATH)) == 10


def test_an_address_may_run_out_early(hub: FakeHub, location: str) -> None:
    hub.faults = [Fault(PATH, expired=True), Fault(at="hub", expired=True)]
    assert [requests.get(location, timeout=10).status_code for _ in range(2)] == [403, 200]
    assert [requests.get(address(hub), timeout=10).status_code for _ in range(2)] == [403, 200]


def test_a_file_changes_between_two_requests(hub: FakeHub, location: str) -> None:
    whole = requests.get(location, timeout=10)
    part = {"Range": "bytes=5-9", "If-Range": whole.headers["ETag"]}
    hub.faults = [Fault(PATH, etag="other"), Fault(at="hub", etag="another"), Fault("config.json", etag="new")]
    changed = requests.get(location, headers=part, timeout=10)
    assert (changed.status_code, changed.headers["ETag"], changed.content) == (200, '"other"', WEIGHTS)
    assert requests.get(location, headers=part, timeout=10).content == WEIGHTS[5:10]
    assert requests.head(address(hub), timeout=10).headers["X-Linked-ETag"] == '"another"'
    assert requests.get(address(hub, "config.json"), timeout=10).headers["ETag"] == '"new"'


def test_what_is_pushed_meanwhile_is_another_file(hub: FakeHub, location: str) -> None:
    hub.repos["org/model"].change({PATH: b"other weights"})
    assert requests.get(address(hub), timeout=10).content == b"other weights"
    assert requests.get(location, timeout=10).content == WEIGHTS


def test_connections_are_slow_when_told(hub: FakeHub, location: str) -> None:
    def took_s(count: int) -> float:
        began = time.monotonic()
        span = {"Range": f"bytes=0-{count - 1}"}
        assert requests.get(location, headers=span, timeout=10).content == WEIGHTS[:count]
        return time.monotonic() - began

    hub.faults = [Fault(PATH, bytes_per_second=200_000)]
    assert took_s(100_000) >= 0.45
    hub.bytes_per_second = 400_000
    assert took_s(200_000) >= 0.45
    hub.bytes_per_second, hub.latency_s = 0, 0.3
    assert took_s(1000) >= 0.3


@pytest.mark.asyncio
async def test_many_connections_are_counted_and_each_has_its_own_pace() -> None:
    hub = sample_hub()
    hub.bytes_per_second = 1_000_000
    piece = 300_000

    async def fetch(session: aiohttp.ClientSession, start: int) -> bytes:
        async with session.get(address(hub), headers={"Range": f"bytes={start}-{start + piece - 1}"}) as answer:
            return await answer.read()

    async with running_hub(hub), aiohttp.ClientSession() as session:
        began = time.monotonic()
        parts = await asyncio.gather(*(fetch(session, start) for start in range(0, len(WEIGHTS), piece)))
        assert b"".join(parts) == WEIGHTS
        assert 0.25 <= time.monotonic() - began < 2.5  # one after the other would take 3 s
        assert hub.most_open == 10
        assert 10 <= hub.most_connections <= 20  # ten to the CDN, and those to the Hub that still stay
        assert (hub.open, hub.sent[PATH]) == (0, len(WEIGHTS))


def _every_fault() -> Iterator[Fault]:
    yield Fault(status=503, times=2)
    yield Fault(at="hub", status=500)
    yield Fault(cut_after=100)
    yield Fault(end_after=100)
    yield Fault(flip_at=5)
    yield Fault(at="hub", expired=True)


@pytest.mark.parametrize("fault", _every_fault(), ids=str)
def test_after_every_fault_the_hub_is_as_before(hub: FakeHub, fault: Fault, tmp_path: Path) -> None:
    hub.faults = [fault]
    for _ in range(2):
        try:
            requests.get(address(hub), timeout=10)
        except requests.RequestException:
            assert fault.cut_after is not None or fault.end_after is not None
    assert fault.times == 0
    folder = snapshot_download("org/model", endpoint=hub.url, cache_dir=tmp_path, token=False)
    assert {path: (Path(folder) / path).read_bytes() for path in FILES} == FILES
