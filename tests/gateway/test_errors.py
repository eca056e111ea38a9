"""Every error a client can get, in OpenAI's shape."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import from_engine, scrub
from gateway.home import own_host_id
from gateway.service import Settings
from tests.gateway.master import make_feed_key, make_project, make_route, make_secret, make_target
from tests.gateway.world import CHAT, World, running_world

MISSING = object()


async def refused(call: Any) -> tuple[int, dict[str, Any], Any]:
    async with call as response:
        answer = await response.json()
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"]
    return response.status, error, response.headers


@pytest.mark.asyncio
async def test_each_fault_of_a_key_has_its_own_sentence(world: World) -> None:
    expired, expired_text = make_feed_key(expires_at=time.time() - 1)
    revoked, revoked_text = make_feed_key(active=False)
    await world.push(keys=(expired, revoked))
    _, unknown = make_secret()
    wrong = world.secret[:-1] + ("a" if world.secret[-1] != "a" else "b")
    seen = {}
    for name, header in {
        "missing": "",
        "malformed": "Bearer sk-nonsense",
        "scheme": f"Basic {world.secret}",
        "unknown": f"Bearer {unknown}",
        "wrong secret": f"Bearer {wrong}",
        "revoked": f"Bearer {revoked_text}",
        "expired": f"Bearer {expired_text}",
    }.items():
        status, error, headers = await refused(world.post(headers={"authorization": header}))
        assert (status, error["code"], error["type"]) == (401, "invalid_api_key", "authentication_error"), name
        assert headers["www-authenticate"] == "Bearer"
        seen[name] = error["message"]
    assert "didn't provide" in seen["missing"]
    assert "revoked" in seen["revoked"]
    assert "expired" in seen["expired"]
    assert seen["unknown"].replace(unknown[7:15], "") == seen["wrong secret"].replace(world.key.id, "")
    assert not any(world.secret in message or revoked_text in message for message in seen.values())


@pytest.mark.asyncio
async def test_a_wrong_secret_of_a_revoked_key_does_not_tell_that_it_is_revoked(world: World) -> None:
    revoked, text = make_feed_key(active=False)
    await world.push(keys=(revoked,))
    _, error, _ = await refused(world.post(secret=text[:-3] + "zzz"))
    assert "Incorrect" in error["message"]


@pytest.mark.asyncio
async def test_models_that_may_not_be_used_or_do_not_exist(world: World) -> None:
    await world.limit(models=("other",))
    assert (await refused(world.post()))[1]["code"] == "model_not_allowed"
    status, error, _ = await refused(world.get("/v1/models/public"))
    assert (status, error["type"]) == (403, "permission_error")
    await world.limit(models=None)
    status, error, _ = await refused(world.post(world.ask(model="nope")))
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


@pytest.mark.asyncio
async def test_a_switched_off_project_is_refused(world: World) -> None:
    await world.push(projects=(make_project(active=False),))
    assert (await refused(world.post()))[:1] == (403,)


@pytest.mark.asyncio
async def test_a_known_model_without_an_instance_says_why_and_when_to_come_back(world: World) -> None:
    await world.route(make_route("waiting", reason="stopped by ops"))
    status, error, headers = await refused(world.post(world.ask(model="waiting")))
    assert (status, error["code"], error["type"]) == (503, "model_not_ready", "server_error")
    assert "stopped by ops" in error["message"]
    assert int(headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": MISSING}, "model"),
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"messages": MISSING}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": True}, "n"),
    ],
)
@pytest.mark.asyncio
async def test_wrong_fields_are_named(world: World, changes: dict[str, Any], param: str) -> None:
    body = {name: value for name, value in {**world.ask(), **changes}.items() if value is not MISSING}
    status, error, _ = await refused(world.post(body))
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert not world.engine.requests


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"text"', b"", b'{"model": NaN}', b"\xff\xfe", b"{" * 5000])
@pytest.mark.asyncio
async def test_malformed_bodies_are_refused(world: World, body: bytes) -> None:
    assert (await refused(world.post(body or b" ")))[0] == 400


@pytest.mark.asyncio
async def test_other_endpoints_check_their_own_fields(world: World) -> None:
    for path, body, param in (
        ("/v1/completions", {"model": "public"}, "prompt"),
        ("/v1/completions", {"model": "public", "prompt": {}}, "prompt"),
        ("/v1/embeddings", {"model": "public"}, "input"),
        ("/v1/embeddings", {"model": "public", "input": "x", "stream": True}, "stream"),
    ):
        status, error, _ = await refused(world.post(body, path))
        assert (status, error["param"]) == (400, param)


@pytest.mark.asyncio
async def test_a_model_without_embeddings_says_so(world: World) -> None:
    await world.route(make_route("public", make_target(world.engine.port, own_host_id()), endpoints=("chat",)))
    status, error, _ = await refused(world.post({"model": "public", "input": "x"}, "/v1/embeddings"))
    assert (status, error["code"]) == (400, "unsupported_by_model")


@pytest.mark.asyncio
async def test_wrong_methods_and_paths(world: World) -> None:
    status, _, headers = await refused(world.client.get(world.base + CHAT))
    assert (status, headers["allow"]) == (405, "POST")
    status, _, headers = await refused(world.client.post(world.base + "/v1/models"))
    assert (status, headers["allow"]) == (405, "GET")
    for path in ("/v2", "/v1", "/v1/chat", "/v1/chat/completions/", "/../etc/passwd", "/v1/modelsx"):
        assert (await refused(world.client.get(world.base + path)))[0] == 404


@pytest.mark.asyncio
async def test_a_body_over_the_limit_is_refused_while_it_is_read(tmp_path: Path) -> None:
    async with running_world(tmp_path, Settings(max_body_bytes=100_000, access_log=False)) as world:
        big = b'{"model":"public","messages":[{"role":"user","content":"' + b"x" * 200_000 + b'"}]}'

        async def chunked() -> Any:
            for start in range(0, len(big), 10_000):
                yield big[start : start + 10_000]

        headers = {"authorization": f"Bearer {world.secret}"}
        assert (await refused(world.post(big)))[0] == 413
        assert (await refused(world.client.post(world.base + CHAT, data=chunked(), headers=headers)))[0] == 413
        small = msgspec.json.encode(world.ask(messages=[{"role": "user", "content": "x" * 90_000}]))
        async with world.post(small) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("engine_says", "status", "code"),
    [
        ((400, {"error": {"code": 400, "message": "bad grammar", "type": "invalid_request_error"}}), 400, None),
        (
            (400, {"error": {"message": "the request exceeds the context size", "type": "exceed_context_size_error"}}),
            400,
            "context_length_exceeded",
        ),
        ((400, {"object": "error", "message": "maximum context length is 10"}), 400, "context_length_exceeded"),
        ((422, {"error": "Input validation error", "error_type": "validation"}), 422, None),
        ((404, "nothing"), 400, "unsupported_by_engine"),
        ((404, {"detail": "Not Found"}), 400, "unsupported_by_engine"),
        ((404, {"error": {"message": "File Not Found", "code": 404}}), 400, "unsupported_by_engine"),
        ((404, {"error": {"message": "The model `engine-7` does not exist.", "code": 404}}), 502, "engine_error"),
        ((404, {"error": {"message": "Response with id 'resp_1' not found.", "code": 404}}), 404, None),
        ((501, {"error": {"message": "This server does not support embeddings."}}), 400, "unsupported_by_engine"),
        ((401, {"error": {"message": "Invalid API Key"}}), 502, "engine_error"),
        ((429, {"error": {"message": "slots are busy"}}), 429, "engine_overloaded"),
        ((500, {"error": {"message": "boom in /opt/models/a.gguf at http://10.1.2.3:8000/x"}}), 502, "engine_error"),
        ((500, "<html>"), 502, "engine_error"),
    ],
)
@pytest.mark.asyncio
async def test_errors_of_the_engine_keep_their_meaning_and_lose_its_secrets(
    world: World, engine_says: tuple[int, Any], status: int, code: str | None
) -> None:
    world.engine.fail = engine_says
    for stream in (False, True):
        got, error, _ = await refused(world.post(world.ask(stream=stream)))
        assert got == status
        assert code is None or error["code"] == code
        assert "/opt/models" not in error["message"]
        assert "10.1.2.3" not in error["message"]
    [row] = await world.usage(2)
    assert (row.status, row.completion_tokens, row.requests) == (status, 0, 2)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."}),
        (400, {"error": {"message": "The decoder prompt (length 5000) is longer than the maximum model length of 9."}}),
        (400, {"error": {"message": "'max_tokens' is too large: 9. This model's maximum context length is 5 tokens"}}),
        (400, {"message": "The input (50 tokens) is longer than the model's context length (40 tokens)."}),
        (400, {"message": "Requested token count exceeds the model's maximum context length of 4096 tokens."}),
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 9. Given: 9 and 9"}),
        (422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"}),
        (500, {"error": {"message": "input is too large to process. increase the physical batch size", "code": 500}}),
    ],
)
def test_every_engines_words_for_a_prompt_too_long_mean_the_same(status: int, body: dict[str, Any]) -> None:
    error = from_engine(status, msgspec.json.encode(body))
    assert (error.status, error.code) == (400, "context_length_exceeded")


def test_words_of_an_engine_lose_addresses_and_paths_only() -> None:
    text = "failed to open '/srv/models/a b/x.gguf' at http://10.0.0.1:8080/v1 or gpu7.internal:8000: 1/2 of 3.5 GiB"
    cleaned = scrub(text)
    for secret in ("/srv", "10.0.0.1", "gpu7"):
        assert secret not in cleaned
    assert "1/2 of 3.5 GiB" in cleaned
    assert from_engine(400, b"\xff").message


@pytest.mark.asyncio
async def test_request_ids_are_kept_when_sane_and_made_when_not(world: World) -> None:
    async with world.post(headers={"x-request-id": "abc-123"}) as response:
        assert response.headers["x-request-id"] == "abc-123"
    assert world.engine.headers[0]["x-request-id"] == "abc-123"
    assert "authorization" not in {name.lower() for name in world.engine.headers[0]}
    async with world.post(headers={"x-request-id": "a b\t" + "x" * 300}) as response:
        assert response.headers["x-request-id"].startswith("req-")


@pytest.mark.asyncio
async def test_cors_is_off_by_default_and_for_named_origins_only(world: World, tmp_path: Path) -> None:
    async with world.post(headers={"origin": "https://a.test"}) as response:
        assert "access-control-allow-origin" not in response.headers
    settings = Settings(cors_origins=("https://a.test",), access_log=False)
    async with running_world(tmp_path / "2", settings) as other:
        ask = {"origin": "https://a.test", "access-control-request-method": "POST"}
        async with other.client.options(other.base + CHAT, headers=ask) as response:
            assert response.status == 204
            assert "authorization" in response.headers["access-control-allow-headers"]
        for origin, allowed in (("https://a.test", "https://a.test"), ("https://b.test", None)):
            async with other.post(headers={"origin": origin}) as response:
                assert response.headers.get("access-control-allow-origin") == allowed


@pytest.mark.asyncio
async def test_models_are_listed_as_the_key_may_use_them(world: World) -> None:
    await world.push(routes=(make_route("org/model", max_context_tokens=2048), make_route("third")))
    await world.limit(models=("public", "org/model"))
    async with world.get("/v1/models") as response:
        models = await response.json()
    assert [item["id"] for item in models["data"]] == ["org/model", "public"]
    async with world.get("/v1/models/org/model") as response:
        assert (await response.json())["max_model_len"] == 2048
    status, _, _ = await refused(world.get("/v1/models/third"))
    assert status == 403


@pytest.mark.asyncio
async def test_health_metrics_and_the_front_page_need_no_key(world: World) -> None:
    async with world.post() as response:
        await response.read()
    for path, words in (
        ("/", "stokehold"),
        ("/healthz", "ok"),
        ("/readyz", "ready"),
        ("/metrics", 'stokehold_gateway_requests_total{model="public",status="200"} 1.0'),
    ):
        async with world.client.get(world.base + path) as response:
            assert response.status == 200
            assert words in await response.text()


@pytest.mark.asyncio
async def test_a_body_nested_too_deeply_is_a_400(world: World) -> None:
    deep = b'{"model":"public","stream":true,"messages":[{"content":' + b"[" * 500 + b"]" * 500 + b"}]}"
    status, error, _ = await refused(world.post(deep))
    assert (status, error["code"]) == (400, "invalid_request")


@pytest.mark.asyncio
async def test_nobody_without_a_key_gets_a_body_read(world: World) -> None:
    status, error, _ = await refused(world.post(b"{not json", secret="nonsense"))
    assert (status, error["code"]) == (401, "invalid_api_key")
