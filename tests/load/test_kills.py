"""SIGTERM and SIGKILL under load, again and again, over one database: clear errors, nothing committed is lost, a log that says it.

KILLS=50 pytest tests/load/test_kills.py; `make test` does it a few times.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from steering.store import open_store
from tests.embedded.server_process import ServerProcess

KILLS = int(os.environ.get("KILLS", "2"))
CLEAR = {"draining", "not_ready", "overloaded", "interrupted"}
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


@dataclass
class Clients:
    """Clients of one server process until it has gone. stored: vectors whose storing the server has confirmed."""

    client: httpx2.AsyncClient
    number: int
    stored: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Runs until connections are refused."""
        await asyncio.gather(*(self._write(one) for one in range(2)), *(self._stream() for _ in range(3)), self._ask())

    async def _write(self, writer: int) -> None:
        turn = 0
        while True:
            turn += 1
            name = f"v{self.number}-{writer}-{turn}"
            body = {"name": name, "directions": {"1": [float(turn), *([1.0] * 31)]}}
            try:
                answer = await self.client.post("/v1/vectors", json=body)
            except httpx2.TransportError:
                return
            self._check(answer)
            if answer.is_success:
                self.stored.append(name)

    async def _ask(self) -> None:
        while True:
            try:
                self._check(await self.client.post("/v1/generate", json={"prompt": "abc", "max_tokens": 4}))
            except httpx2.TransportError:
                return

    async def _stream(self) -> None:
        """A stream ends with `done`, `error`, or a lost connection."""
        body = {"prompt": "abc", "max_tokens": 60, "stream": True}
        while True:
            text = ""
            try:
                async with self.client.stream("POST", "/v1/generate", json=body) as answer:
                    async for piece in answer.aiter_text():
                        text += piece
            except httpx2.TransportError:
                self.ends["lost" if text else "refused"] += 1
                return
            if answer.is_success:
                ended = [event for event in ("done", "error") if f"event: {event}" in text]
                self.ends[ended[0] if ended else "nothing"] += 1

    def _check(self, answer: httpx2.Response) -> None:
        if not answer.is_success and answer.json()["error"]["code"] not in CLEAR:
            self.unclear.append(answer.text)


@pytest.mark.timeout(60 * (KILLS + 5))
async def test_a_stop_at_any_moment_loses_nothing_that_was_committed(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_folder), "device": "cpu", "dtype": "float32", "compiled": "false"}
    server = ServerProcess(tmp_path, tmp_path, lease_seconds="1", drain_seconds="10", **settings)
    choose, stored, ends = random.Random(0), list[str](), Counter[str]()
    for number in range(KILLS):
        how = SIGNALS[number % 2]
        await asyncio.to_thread(server.start)
        start = server.log.stat().st_size
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            clients = Clients(client, number)
            load = asyncio.create_task(clients.run())
            await asyncio.sleep(choose.uniform(0.1, 1.5))
            server.process.send_signal(how)
            code = await asyncio.to_thread(server.process.wait, 60)
            await asyncio.wait_for(load, 60)
        server.client.close()
        written = server.log.read_bytes()[start:].decode(errors="replace")
        assert clients.unclear == []
        assert clients.ends["nothing"] == 0
        if how is signal.SIGTERM:
            assert (code, clients.ends["lost"], "draining" in written) == (0, 0, True), written[-2000:]
        else:
            assert code == -signal.SIGKILL
        assert "Traceback" not in written, written[-4000:]
        stored += clients.stored
        ends.update(clients.ends)
    assert stored
    store = await open_store(f"sqlite:///{tmp_path}/steering.sqlite3")
    for name in stored:
        vector = await store.shared.vectors.get(name)
        assert (vector.version, vector.layers[1].direction.shape) == (1, (32,))
    await store.close()
    print({"kills": KILLS, "vectors stored and found": len(stored), "ends of streams": dict(ends)})
