"""The store `memory://` is a database in a folder of its own, which does not outlive it."""

import asyncio
import threading
from pathlib import Path, PosixPath

import pytest

from steering.errors import StoreUnavailable
from steering.store.store import open_temporary_store
from tests.polling import until
from tests.steering.store.planted import planted


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.sqlite3"))


def empty(folder: Path) -> bool:
    return not any(folder.iterdir())


async def test_it_is_deleted_when_it_is_closed(tmp_path: Path) -> None:
    store = await open_temporary_store(tmp_path)
    await store.shared.vectors.put(planted("warmth", 0))
    assert files(tmp_path) == ["store.sqlite3"]
    await store.close()
    assert empty(tmp_path)


async def test_two_stores_share_nothing(tmp_path: Path) -> None:
    one, other = await open_temporary_store(tmp_path), await open_temporary_store(tmp_path)
    await one.shared.vectors.put(planted("warmth", 0))
    assert (await other.shared.vectors.find()).items == ()
    await one.close()
    await other.close()
    assert empty(tmp_path)


async def test_without_a_place_for_its_folder_the_store_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await open_temporary_store(tmp_path / "missing")


async def test_an_opening_that_is_cancelled_leaves_no_folder(tmp_path: Path) -> None:
    opening = asyncio.create_task(open_temporary_store(tmp_path))
    await until(lambda: not empty(tmp_path))
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert empty(tmp_path)


class SlowFolder(PosixPath):
    """A place where nothing is made before the test lets it."""

    asked, go_on = threading.Event(), threading.Event()

    def __fspath__(self) -> str:
        self.asked.set()
        self.go_on.wait(60)
        return super().__fspath__()


async def test_an_opening_that_is_cancelled_while_its_folder_is_made_leaves_none(tmp_path: Path) -> None:
    place = SlowFolder(tmp_path)
    opening = asyncio.create_task(open_temporary_store(place))
    await until(place.asked.is_set)
    opening.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not opening.done(), "the thread that makes the folder would outlive it"
    place.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert empty(tmp_path)
