"""Clients in environments of their own: LangChain, LiteLLM, OpenAI's SDK for Node."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.conformance.service import Service, client_python, node_project

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def python() -> str:
    """Installed before there is a service: its key for one request a minute must be used up still when they run."""
    return client_python()


@pytest.mark.parametrize("name", ["langchain", "litellm"])
async def test_a_python_client(python: str, service: Service, name: str) -> None:
    options = ("-q", "-p", "no:cacheprovider", "--confcutdir=clients", "-c", "/dev/null", "--rootdir=clients")
    await service.run(python, "-m", "pytest", *options, f"clients/test_{name}.py")


async def test_openai_for_node(service: Service, tmp_path: Path) -> None:
    project = await asyncio.to_thread(node_project, tmp_path)
    await service.run("node", "--test", "--test-reporter=spec", "openai.test.mjs", cwd=project)
