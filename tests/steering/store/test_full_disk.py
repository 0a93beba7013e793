"""On a disk that is full, deleting works, and what fails says why. The disk is a tmpfs of its own, so it is really full."""

import asyncio
import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from steering.errors import StorageFull
from steering.spec import SteeringSpec
from steering.store.database import RESERVE_BYTES
from steering.store.records import KeyRecord
from steering.store.store import Store, open_sql_store
from tests.steering.store.planted import planted

DISK_BYTES = 2 * RESERVE_BYTES


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def link_id(number: int) -> str:
    return base64.b32encode(number.to_bytes(10, "big")).decode().lower()


async def filled(store: Store) -> int:
    """Saves links until the disk is full; returns how many there are."""
    for number in range(1000):
        try:
            await store.shared.links.put(link_id(number), "compare", {"text": "x" * 60_000})
        except StorageFull:
            return number
    raise AssertionError("the disk is not full")


async def test_a_full_disk_can_delete_and_store_again_what_fits(disk: Path) -> None:
    store = await open_sql_store(f"sqlite:///{disk / 'store.sqlite3'}")
    await store.shared.vectors.put(planted("warmth", 1))
    await store.shared.profiles.put("calm", SteeringSpec())
    await store.servers.renew("server", 60, {})
    await store.keys.create(KeyRecord("key_1", "leaked", "0" * 64, ("read",)))
    count = await filled(store)
    assert count > 50
    assert await store.keys.edit("key_1", lambda *_: None) is None, "a key can be revoked"
    for number in range(count // 2):
        await store.shared.links.delete(link_id(number), None)
    await store.shared.profiles.delete("calm")
    await store.shared.vectors.delete("warmth")
    assert (await store.shared.vectors.find()).items == ()
    assert (await store.servers.renew("server", 60, {})).servers == 1, "the lease is renewed, or its jobs would be lost"
    with pytest.raises(StorageFull, match="only deleting and changing keys works"):
        await store.shared.links.put(link_id(5000), "compare", {"text": "x"})
    assert (await store.shared.links.find(None, 200))[0], "reading works"
    await store.close()


async def test_a_disk_that_has_space_again_takes_writes_and_the_reserve_is_back(disk: Path) -> None:
    other = disk / "other"
    await asyncio.to_thread(other.write_bytes, bytes(DISK_BYTES // 4))
    store = await open_sql_store(f"sqlite:///{disk / 'store.sqlite3'}")
    reserve = disk / "store.sqlite3-reserve"
    assert reserve.stat().st_size == RESERVE_BYTES
    assert reserve.stat().st_mode & 0o777 == 0o600
    await filled(store)
    await store.shared.links.delete(link_id(0), None)
    assert not reserve.exists()
    await asyncio.to_thread(other.unlink)
    for number in range(1, 40):
        await store.shared.links.delete(link_id(number), None)
    await store.close()
    store = await open_sql_store(f"sqlite:///{disk / 'store.sqlite3'}")
    await store.shared.links.put(link_id(6000), "compare", {"text": "x"})
    assert reserve.exists()
    await store.close()
