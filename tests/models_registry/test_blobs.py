"""Blobs over HTTP: authenticated, in ranges, never whole in memory."""

import hashlib

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.http import StreamingHttpResponse
from django.test import Client
from django.utils import timezone

from config.node_files import NodeFiles
from fleet.models import Gateway, Server
from models_registry.blobs import ByteRange, RangeNotSatisfiable, parse_range
from models_registry.models import ModelVersion, VersionState
from tests.models_registry.factories import make_version, write_gguf
from wire import certs
from wire.tokens import make_node_token

CONTENT = bytes(range(256)) * 12_000  # about 3 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URL = f"/api/v1/blobs/{SHA256}"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=2-", ByteRange(2, 10)),
        ("bytes=2-500", ByteRange(2, 10)),
        ("bytes=-3", ByteRange(7, 10)),
        ("bytes=-50", ByteRange(0, 10)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
    ],
)
def test_a_single_range_is_understood(header, expected):
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=9999999999-"])
def test_a_range_beyond_the_end_cannot_be_served(header):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 10)


def make_node(model: type, name: str) -> tuple[Server | Gateway, dict[str, str]]:
    keys = certs.make_signing_key()
    node = model.objects.create(name=name, public_key_pem=keys.public_pem)
    token = make_node_token(certs.load_signing_key(keys.private_pem), node.pk, timezone.now().timestamp())
    return node, {"Authorization": f"Bearer {token}"}


@pytest.fixture
def version(tmp_path, transactional_db) -> ModelVersion:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.bin").write_bytes(CONTENT)
    return make_version(tmp_path / "m")


@pytest.fixture
def agent(transactional_db) -> dict[str, str]:
    return make_node(Server, "s1")[1]


pytestmark = pytest.mark.urls("tests.models_registry.urls")


def body_of(answer: StreamingHttpResponse) -> bytes:
    async def read() -> bytes:
        return b"".join([chunk async for chunk in answer])

    return async_to_sync(read)()


def test_a_server_gets_a_whole_blob(version, agent):
    answer = Client().get(URL, headers=agent)
    assert answer.status_code == 200
    assert body_of(answer) == CONTENT
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["ETag"] == f'"{SHA256}"'
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_a_range_continues_a_broken_download(version, agent):
    answer = Client().get(URL, headers={**agent, "Range": "bytes=1500000-"})
    assert answer.status_code == 206
    assert body_of(answer) == CONTENT[1_500_000:]
    assert answer.headers["Content-Range"] == f"bytes 1500000-{len(CONTENT) - 1}/{len(CONTENT)}"


def test_a_range_beyond_the_end_is_416_and_tells_the_size(version, agent):
    answer = Client().get(URL, headers={**agent, "Range": f"bytes={len(CONTENT)}-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    assert answer.json()["code"] == "range_not_satisfiable"


def test_head_tells_the_size_only(version, agent):
    answer = Client().head(URL, headers=agent)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(CONTENT))


def test_only_servers_that_joined_and_are_not_revoked_get_anything(version, agent):
    _, gateway = make_node(Gateway, "g1")
    revoked, token = make_node(Server, "s2")
    Server.objects.filter(pk=revoked.pk).update(revoked_at=timezone.now())
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eDp5"}, gateway):
        answer = Client().get(URL, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert Client().get(URL, headers=token).status_code == 403
    assert Client().post(URL, headers=agent).status_code == 405


def test_only_blobs_of_ready_versions_are_served(version, agent, tmp_path):
    assert Client().get(f"/api/v1/blobs/{'0' * 64}", headers=agent).status_code == 404
    assert Client().get("/api/v1/blobs/..%2Fx", headers=agent).status_code == 404
    ModelVersion.objects.update(state=VersionState.FAILED)
    assert Client().get(URL, headers=agent).status_code == 404
    make_version(write_gguf(tmp_path / "g"))
    assert Client().get(URL, headers=agent).status_code == 404


def test_under_asgi_a_blob_comes_in_chunks(version, agent):
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": URL,
        "query_string": b"",
        "headers": [(b"authorization", agent["Authorization"].encode()), (b"host", b"testserver")],
    }

    application = NodeFiles(get_asgi_application())

    async def fetch() -> list[int]:
        communicator = ApplicationCommunicator(application, scope)
        await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
        start = await communicator.receive_output(10)
        assert start["status"] == 200
        sizes, more = [], True
        while more:
            part = await communicator.receive_output(10)
            sizes.append(len(part.get("body", b"")))
            more = part.get("more_body", False)
        return sizes

    try:
        sizes = async_to_sync(fetch)()
    finally:
        application.close()
    assert sum(sizes) == len(CONTENT)
    assert max(sizes) <= 1 << 20
