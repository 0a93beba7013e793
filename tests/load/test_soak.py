"""Clients that ask, hang up and err while vectors are written: answers stay equal, nothing is left behind, memory is flat.

`make soak` runs it for 15 minutes (SOAK_SECONDS=900); `make test` for some seconds.
"""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from tests.embedded.server_process import ServerProcess

SECONDS = float(os.environ.get("SOAK_SECONDS", "6"))
CLIENTS = 8
PROMPTS = ("The road to the sea", "abc", "One two three", "It was a quiet evening and", "z")
INVALID: tuple[dict[str, Any], ...] = (
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "max_tokens": 100_000},
    {"prompt": "a", "steering": [{"vector": "nothing"}]},
    {"prompt": "a", "unknown": 1},
    {"messages": []},
)
PLAIN = {"max_tokens": 24, "temperature": 0, "steering": []}
KINDS = ("invalid", "hung up", "plain", "steered", "written", "deleted")
"""What the clients do; each happens at least once."""
MEGABYTE = 1 << 20


@dataclass
class Load:
    """The clients of one server, and what they saw. wrong: answers that should not have been."""

    client: httpx2.AsyncClient
    baselines: dict[str, str]
    until: float
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def ask(self, number: int) -> None:
        """One client: 10 % of its requests are invalid, of 30 % it hangs up, the others are plain or steered."""
        choose = random.Random(number)
        while time.monotonic() < self.until:
            share = choose.random()
            if share < 0.1:
                answer = await self.client.post("/v1/generate", json=choose.choice(INVALID))
                self._count("invalid", answer, answer.status_code in (400, 404))
            elif share < 0.4:
                await self._hang_up(choose.randrange(1, 8))
            elif share < 0.7:
                prompt = choose.choice(PROMPTS)
                answer = await self.client.post("/v1/generate", json={**PLAIN, "prompt": prompt})
                self._count("plain", answer, answer.is_success and _text(answer) == self.baselines[prompt])
            else:
                steering = [{"vector": "mood", "strength": choose.uniform(-1, 1)}]
                body = {"prompt": choose.choice(PROMPTS), "max_tokens": 16, "n": 2, "steering": steering}
                answer = await self.client.post("/v1/generate", json=body)
                self._count("steered", answer, answer.is_success)

    async def _hang_up(self, pieces: int) -> None:
        body = {"prompt": "a", "max_tokens": 200, "stream": True, "steering": [{"vector": "mood"}]}
        async with self.client.stream("POST", "/v1/generate", json=body) as answer:
            async for _ in answer.aiter_text():
                pieces -= 1
                if pieces == 0:
                    break
        self.counts["hung up"] += 1

    async def write(self) -> None:
        """Makes versions of a vector, and deletes old ones."""
        version = 1
        while time.monotonic() < self.until:
            version += 1
            numbers = [float(version % 7 + 1), *[1.0] * 31]
            answer = await self.client.post("/v1/vectors", json={"name": "mood", "directions": {"1": numbers}})
            self._count("written", answer, answer.is_success)
            if version > 5:
                gone = await self.client.delete(f"/v1/vectors/mood?version={version - 5}")
                self._count("deleted", gone, gone.is_success)
            await asyncio.sleep(0.1)

    def _count(self, kind: str, answer: httpx2.Response, right: bool) -> None:
        self.counts[kind] += 1
        if not right:
            self.wrong.append(f"{kind}: {answer.status_code} {answer.text[:500]}")


def _text(answer: httpx2.Response) -> str:
    return str(answer.json()["choices"][0]["text"])


async def _measured(process: psutil.Process, until: float) -> list[tuple[float, int]]:
    """Returns the time and the memory of the process, once a second."""
    found = []
    while time.monotonic() < until:
        found.append((time.monotonic(), process.memory_info().rss))
        await asyncio.sleep(1.0)
    return found


async def _gauges(client: httpx2.AsyncClient) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^(steering_\S+) (\S+)$", text, flags=re.MULTILINE)}


async def _soaked(url: str, process: psutil.Process) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        numbers = {"name": "mood", "directions": {"1": [1.0] * 32}}
        assert (await client.post("/v1/vectors", json=numbers)).status_code == 201
        baselines = {p: _text(await client.post("/v1/generate", json={**PLAIN, "prompt": p})) for p in PROMPTS}
        load = Load(client, baselines, time.monotonic() + min(3.0, SECONDS))
        await asyncio.gather(*(load.ask(number) for number in range(CLIENTS)))  # opens every connection
        before = process.num_fds(), process.num_threads()
        load.until = until = time.monotonic() + SECONDS
        *_, samples = await asyncio.gather(
            *(load.ask(100 + number) for number in range(CLIENTS)), load.write(), _measured(process, until)
        )
        async with asyncio.timeout(30):
            while (gauges := await _gauges(client))["steering_engine_running"] > 0:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        for prompt, text in baselines.items():
            assert _text(await client.post("/v1/generate", json={**PLAIN, "prompt": prompt})) == text
    assert load.wrong == []
    assert all(load.counts[kind] for kind in KINDS), load.counts
    seconds, memory = np.array(samples[len(samples) // 3 :], dtype=float).T
    return {
        "requests": dict(load.counts),
        "descriptors": (before[0], process.num_fds()),
        "threads": (before[1], process.num_threads()),
        "waiting": gauges["steering_engine_waiting"],
        "blocks used": gauges['steering_cache_blocks{state="used"}'],
        "megabytes": round(memory[-1] / MEGABYTE),
        "megabytes per minute": round(float(np.polyfit(seconds, memory, 1)[0]) * 60 / MEGABYTE, 3),
    }


async def test_nothing_is_left_of_the_load_and_memory_is_flat(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_folder), "device": "cpu", "dtype": "float32", "compiled": "false"}
    server = ServerProcess(tmp_path, tmp_path, **settings)
    await asyncio.to_thread(server.start)
    try:
        found = await _soaked(server.url, psutil.Process(server.process.pid))
        log = server.log.read_text()
    finally:
        await asyncio.to_thread(server.kill)
    print(json.dumps(found))
    assert found["waiting"] == found["blocks used"] == 0
    assert found["descriptors"][1] <= found["descriptors"][0] + 16  # idle connections
    assert found["threads"][1] <= found["threads"][0] + 16
    assert "Traceback" not in log
    if SECONDS >= 600:  # in a shorter run caches and the allocator are still growing
        assert abs(found["megabytes per minute"]) < 1.0
