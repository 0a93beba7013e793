"""One empty store of each kind in the STORES table, for the tests that ask for `store`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steering.store import open_store
from steering.store.base import Store
from tests.contracts.stores import PLACES, SERVERS, empty


@pytest.fixture(params=sorted(PLACES | SERVERS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param in SERVERS:
        await asyncio.to_thread(empty, SERVERS[request.param])
    opened = await open_store((PLACES | SERVERS)[request.param].format(folder=tmp_path))
    yield opened
    await opened.close()
