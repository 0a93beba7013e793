"""Fixtures of the OpenAI routes: a server on a real socket for each engine, and the openai client, unmodified."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tests.app.core.listening import Listening

PROFILE = {"interventions": [{"vector": "mood", "strength": 0.5}], "description": "a good mood"}


@pytest.fixture
async def client(listening: Listening) -> AsyncIterator[AsyncOpenAI]:
    """The openai client, unmodified, without retries."""
    direction = [1.0] * listening.engine.info.d_model
    async with AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="none", max_retries=0) as one:
        await one.post("/vectors", body={"name": "mood", "directions": {"1": direction}}, cast_to=object)
        await one.put("/profiles/cheerful", body=PROFILE, cast_to=object)
        yield one
