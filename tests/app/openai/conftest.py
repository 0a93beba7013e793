"""Fixtures of the OpenAI routes: a server on a real socket, and the openai client, unmodified."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tests.app.http.listening import Listening
from tests.fakes import ScriptedEngine

D_MODEL = 8
PROFILE = {"interventions": [{"vector": "mood", "strength": 0.5}], "description": "a good mood"}


@pytest.fixture
async def listening() -> AsyncIterator[Listening]:
    """A server over a scripted engine, with a vector and a profile."""
    async with Listening(ScriptedEngine()) as one:
        yield one


@pytest.fixture
async def client(listening: Listening) -> AsyncIterator[AsyncOpenAI]:
    """The openai client, unmodified, without retries."""
    async with AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="none", max_retries=0) as one:
        await one.post("/vectors", body={"name": "mood", "directions": {"1": [1.0] * D_MODEL}}, cast_to=object)
        await one.put("/profiles/cheerful", body=PROFILE, cast_to=object)
        yield one
