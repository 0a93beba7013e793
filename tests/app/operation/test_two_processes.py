"""Two server processes on one PostgreSQL under load: one is killed, the database is restarted, and nothing committed is lost."""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from steering.store import open_store
from tests.embedded.server_process import ServerProcess
from tests.polling import holds
from tests.postgresql_server.server import PostgreSQL

PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(60)]
CLEAR = {"store_unavailable", "draining", "not_ready", "overloaded"}
"""Codes that tell a client to try again."""


@dataclass
class Clients:
    """Clients of one server that write, generate and count what they get."""

    url: str
    name: str
    vectors: list[str] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)
    lost_connections: int = 0
    stop: bool = False

    async def run(self) -> None:
        async with httpx2.AsyncClient(base_url=self.url, timeout=60) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(4)))

    async def _client(self, client: httpx2.AsyncClient, number: int) -> None:
        turn = 0
        while not self.stop:
            turn += 1
            name = f"{self.name}-{number}-{turn}"
            body = {"name": name, "directions": {"1": [float(turn), *([1.0] * 31)]}}
            if await self._ask(client.post("/v1/vectors", json=body)):
                self.vectors.append(name)
                steering = {"interventions": [{"vector": name, "strength": 0.1}]}
                if await self._ask(client.put(f"/v1/profiles/{name}", json=steering)):
                    self.profiles.append(name)
            await self._ask(client.post("/v1/generate", json={"prompt": "abc", "max_tokens": 3, "steering": []}))
            await asyncio.sleep(0.01)

    async def _ask(self, call: Awaitable[httpx2.Response]) -> bool:
        try:
            answer = await call
        except httpx2.TransportError:
            self.lost_connections += 1
            await asyncio.sleep(0.05)
            return False
        if answer.status_code < 300:
            self.codes["ok"] += 1
            return True
        code = answer.json()["error"]["code"]
        self.codes[code] += 1
        if code not in CLEAR:
            self.unclear.append(answer.text)
        return False


async def more_answers(clients: Clients, count: int) -> None:
    """Returns when so many more requests have succeeded."""
    before = clients.codes["ok"]

    async def enough() -> bool:
        return clients.codes["ok"] >= before + count

    await holds(enough)


@pytest.mark.timeout(900)
async def test_one_server_is_killed_and_the_database_restarted_under_load(tiny_folder: Path, tmp_path: Path) -> None:
    with PostgreSQL() as database:
        url = database.create()
        options = {"model": str(tiny_folder), "device": "cpu", "dtype": "float32", "compiled": "false"}
        servers, running = [], []
        for name in ("killed", "living"):
            (tmp_path / name).mkdir()
            servers.append(ServerProcess(tmp_path / name, tmp_path, database=url, lease_seconds="6", **options))
        killed, living = servers
        try:
            for server in servers:
                await asyncio.to_thread(server.start)
            loads = [Clients(server.url, name) for server, name in zip(servers, ("killed", "living"), strict=True)]
            running = [asyncio.create_task(load.run()) for load in loads]
            async with httpx2.AsyncClient(base_url=living.url, timeout=60) as client:
                await _through_failures(database, killed, client, *loads)
            for load in loads:
                load.stop = True
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            for server in servers:
                if server.url:
                    await asyncio.to_thread(server.kill)
        assert [load.unclear for load in loads] == [[], []]
        assert loads[1].lost_connections == 0
        assert loads[1].codes["store_unavailable"] > 0
        await _nothing_is_lost(url, *loads)


async def _through_failures(
    database: PostgreSQL, killed: ServerProcess, client: httpx2.AsyncClient, doomed: Clients, load: Clients
) -> None:
    """SIGKILL of one server, then a crash and a start of the database."""
    body = {"name": "mood", "pairs": PAIRS, "method": "trained", "training": {"steps": 2000}}
    await asyncio.gather(more_answers(doomed, 30), more_answers(load, 30))
    own = (await client.post("/v1/vectors/extract", json={**body, "name": "other"})).json()
    async with httpx2.AsyncClient(base_url=killed.url, timeout=60) as other:
        lost = (await other.post("/v1/vectors/extract", json=body)).json()

    async def is_running() -> bool:
        return bool((await client.get(f"/v1/jobs/{lost['id']}")).json()["status"] == "running")

    await holds(is_running)
    killed.process.kill()
    await more_answers(load, 30)

    async def is_reported() -> bool:
        record = (await client.get(f"/v1/jobs/{lost['id']}")).json()
        return bool(record["status"] == "failed" and record["error"]["code"] == "interrupted")

    await holds(is_reported)
    assert (await client.get(f"/v1/jobs/{own['id']}")).json()["status"] in ("queued", "running", "succeeded")

    await asyncio.to_thread(database.stop, signal.SIGQUIT)
    refused = load.codes["store_unavailable"]

    async def is_refused() -> bool:
        return load.codes["store_unavailable"] > refused

    await holds(is_refused)
    assert (await client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2, "steering": []})).status_code == 200

    async def is_not_ready() -> bool:
        answer = await client.get("/health/ready")
        return answer.status_code == 503 and answer.json()["error"]["code"] == "store_unavailable"

    await holds(is_not_ready)
    await asyncio.to_thread(database.start)
    await more_answers(load, 60)

    async def is_ready() -> bool:
        return (await client.get("/health/ready")).status_code == 200

    await holds(is_ready)
    ended: dict[str, Any] = (await client.delete(f"/v1/jobs/{own['id']}")).json()
    assert ended["status"] in ("cancelled", "succeeded") or ended["error"]["code"] == "store_unavailable"


async def _nothing_is_lost(url: str, *loads: Clients) -> None:
    store = await open_store(url)
    profiles = {profile.name for profile in await store.shared.profiles.names()}
    for load in loads:
        assert len(load.vectors) >= 10
        for name in load.vectors:
            assert (await store.shared.vectors.get(name)).version == 1
        assert set(load.profiles) <= profiles
    unfinished = [job.id for job in (await store.shared.jobs.find(200)).items if job.status in ("queued", "running")]
    assert unfinished == []
    await store.close()
