"""Fixtures of Ollama's routes: a server on a real socket for each engine, and the ollama client, unmodified."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from ollama import AsyncClient

from tests.app.core.listening import Listening
from tests.app.openai.conftest import PROFILE


@pytest.fixture
async def plain(listening: Listening) -> AsyncIterator[httpx2.AsyncClient]:
    """A client for what the ollama package leaves out of its answers; the server has a vector and a profile."""
    direction = [1.0] * listening.engine.info.d_model
    async with httpx2.AsyncClient(base_url=listening.url, timeout=30) as one:
        await one.post("/v1/vectors", json={"name": "mood", "directions": {"1": direction}})
        await one.put("/v1/profiles/cheerful", json=PROFILE)
        yield one


@pytest.fixture
async def client(listening: Listening, plain: httpx2.AsyncClient) -> AsyncIterator[AsyncClient]:
    """The ollama client, unmodified."""
    async with AsyncClient(host=listening.url) as one:
        yield one
