"""One empty store on each database, for the tests that ask for `store`; each engine for `engine`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steering.engine.api import Engine
from steering.store import open_store
from steering.store.store import Store
from tests.contracts.engines import CONTRACT_ENGINES, ContractEngines
from tests.memory_store import memory_store, migrated_file
from tests.postgresql_server.server import PostgreSQL


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store, whose database was migrated once for all tests; tests/steering/store/test_migrations.py has the rest."""
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        opened = await open_store(server.migrated)
        yield opened
        await opened.close()
        server.empty(server.migrated)
        return
    if request.param == "sqlite":
        file = tmp_path / "store.sqlite3"
        file.write_bytes(migrated_file())
        opened = await open_store(f"sqlite:///{file}")
    else:
        opened = await memory_store()
    yield opened
    await opened.close()


@pytest.fixture(params=CONTRACT_ENGINES)
async def engine(request: pytest.FixtureRequest, contract_engines: ContractEngines) -> AsyncIterator[Engine]:
    async with contract_engines.opened(request.param) as engine:
        yield engine
