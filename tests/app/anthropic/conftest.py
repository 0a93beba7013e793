"""Fixtures of Anthropic's routes: a server on a real socket for each engine, and the anthropic client, unmodified."""

from collections.abc import AsyncIterator

import pytest
from anthropic import AsyncAnthropic

from tests.app.core.listening import Listening
from tests.app.openai.conftest import PROFILE


@pytest.fixture
async def client(listening: Listening) -> AsyncIterator[AsyncAnthropic]:
    """The anthropic client, unmodified, without retries; the server has a vector and a profile."""
    direction = [1.0] * listening.engine.info.d_model
    async with AsyncAnthropic(base_url=listening.url, api_key="none", max_retries=0) as one:
        await one.post("/v1/vectors", body={"name": "mood", "directions": {"1": direction}}, cast_to=object)
        await one.put("/v1/profiles/cheerful", body=PROFILE, cast_to=object)
        yield one
