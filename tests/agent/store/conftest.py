"""A store of a joined home."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agent.home import AgentHome
from agent.store import Store
from agent.store.sources import Network
from wire.certs import load_signing_key
from wire.tokens import make_node_token


@pytest_asyncio.fixture
async def network(home: AgentHome) -> AsyncIterator[Network]:
    identity = home.identity()
    assert identity is not None
    key = load_signing_key(identity.signing_key_pem)
    made = Network(identity, lambda: make_node_token(key, identity.node_id, time.time()), home.relay_pem)
    yield made
    await made.close()


@pytest.fixture
def store(home: AgentHome, network: Network) -> Store:
    return Store(home.path, network)
