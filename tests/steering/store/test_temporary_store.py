"""The store `memory://` is a database in a folder of its own, which does not outlive it."""

import asyncio
import tempfile
from pathlib import Path

import pytest

from steering.errors import StoreUnavailable
from steering.store import open_store
from steering.store.base import VectorFilter
from tests.polling import until
from tests.steering.store.planted import planted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.sqlite3"))


def empty(folder: Path) -> bool:
    return not any(folder.iterdir())


@pytest.fixture
def missing(folder: Path) -> Path:
    """The place of temporary folders, which does not exist."""
    folder.rmdir()
    return folder


async def test_it_is_deleted_when_it_is_closed(folder: Path) -> None:
    store = await open_store("memory://")
    await store.shared.vectors.put(planted("warmth", 0))
    assert files(folder) == ["store.sqlite3"]
    await store.close()
    assert empty(folder)


async def test_two_stores_share_nothing(folder: Path) -> None:
    one, other = await open_store("memory://"), await open_store("memory://")
    await one.shared.vectors.put(planted("warmth", 0))
    assert (await other.shared.vectors.find(VectorFilter())).vectors == ()
    await one.close()
    await other.close()
    assert empty(folder)


@pytest.mark.usefixtures("missing")
async def test_without_a_place_for_its_folder_the_store_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await open_store("memory://")


async def test_an_opening_that_is_cancelled_leaves_no_folder(folder: Path) -> None:
    opening = asyncio.create_task(open_store("memory://"))
    await until(lambda: not empty(folder))
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert empty(folder)
