"""One empty store on each database, for the tests that ask for `store`; each engine for `engine`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steering.engine.api import Engine
from steering.store import open_store
from steering.store.store import Store
from tests.contracts.engines import CONTRACT_ENGINES, ContractEngines
from tests.contracts.stores import PLACES


@pytest.fixture(params=sorted(PLACES))
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that nobody has opened yet."""
    return _url(request, tmp_path)


def _url(request: pytest.FixtureRequest, folder: Path) -> str:
    database = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else ""
    return PLACES[request.param].format(folder=folder, postgresql=database)


@pytest.fixture(params=sorted(PLACES))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(_url(request, tmp_path))
    yield opened
    await opened.close()


@pytest.fixture(params=CONTRACT_ENGINES)
async def engine(request: pytest.FixtureRequest, contract_engines: ContractEngines) -> AsyncIterator[Engine]:
    async with contract_engines.opened(request.param) as engine:
        yield engine
