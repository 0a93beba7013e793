"""A store on a SQLite file, in a folder that is not there yet."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steering.store.store import Store, open_sql_store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "made" / "for it" / "store 100%.sqlite3"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[Store]:
    opened = await open_sql_store(f"sqlite:///{file}")
    yield opened
    await opened.close()
