"""One empty store of each kind in the STORES table, for the tests that ask for `store`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steering.store import STORES
from steering.store.base import Store
from steering.store.opening import open_store
from tests.contracts.stores import NEEDS_A_SERVER, PLACES


@pytest.fixture(params=sorted(set(STORES) - NEEDS_A_SERVER))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(PLACES[request.param].format(folder=tmp_path))
    yield opened
    await opened.close()
