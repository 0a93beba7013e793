"""Fixtures of the OpenAI routes: a server on a real socket for each engine, and the openai client, unmodified."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tests.app.core.listening import Listening
from tests.contracts.engines import CONTRACT_ENGINES, ContractEngines, unclosed

PROFILE = {"interventions": [{"vector": "mood", "strength": 0.5}], "description": "a good mood"}


@pytest.fixture(params=CONTRACT_ENGINES)
async def listening(request: pytest.FixtureRequest, contract_engines: ContractEngines) -> AsyncIterator[Listening]:
    """A server over an engine, with a vector and a profile."""
    async with contract_engines.opened(request.param) as engine, Listening(unclosed(engine)) as one:
        yield one


@pytest.fixture
def model(listening: Listening) -> str:
    """The name of the served model."""
    return listening.engine.info.name


@pytest.fixture
async def client(listening: Listening) -> AsyncIterator[AsyncOpenAI]:
    """The openai client, unmodified, without retries."""
    direction = [1.0] * listening.engine.info.d_model
    async with AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="none", max_retries=0) as one:
        await one.post("/vectors", body={"name": "mood", "directions": {"1": direction}}, cast_to=object)
        await one.put("/profiles/cheerful", body=PROFILE, cast_to=object)
        yield one
