"""One empty store of each kind in the STORES table, for the tests that ask for `store`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steering.store import open_store
from steering.store.base import Store
from tests.contracts.stores import PLACES


@pytest.fixture(params=sorted(PLACES))
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that nobody has opened yet."""
    database = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else ""
    return PLACES[request.param].format(folder=tmp_path, postgresql=database)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = await open_store(store_url)
    yield opened
    await opened.close()
