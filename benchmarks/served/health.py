"""`python -m benchmarks.served.health`: measures the latency of /health while the server computes maps of 500 texts."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.contenders.open_engine import cache_dir
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.pairs import Text
from steering.projection import PROJECTIONS

TEXTS = 500
TICK = 0.02
"""Seconds between two requests to /health. They do not wait for each other, so every request during a stall measures it."""
PAUSE = 0.05
"""Seconds this idle process may be late for a tick. When it is later, the machine itself was paused."""
BOUND = 0.1
IDLE_SECONDS = 3.0
READY_SECONDS = 300.0


def texts_and_labels() -> tuple[list[Any], list[str]]:
    """Returns texts and conversations of the starter concepts, each labelled with its concept."""
    pairs = [(_as_json(text), name) for name in CONCEPTS for text in chain(*load_concept(name))]
    chosen = [pairs[int(index)] for index in np.linspace(0, len(pairs) - 1, TEXTS)]
    return [text for text, _ in chosen], [name for _, name in chosen]


def _as_json(text: Text) -> Any:
    return text if isinstance(text, str) else [asdict(message) for message in text]


@contextmanager
def served() -> Iterator[str]:
    """Runs a server of the embedded model in its own process and yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "STEERING_CACHE_DIR": str(cache_dir()),
            "STEERING_DATABASE": f"sqlite:///{folder}/health.sqlite3",
            "STEERING_COMPILED": "false",  # otherwise the compiler would be measured too
            "STEERING_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-P", "-m", "app.cli.main", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env={**os.environ, **settings})
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


async def until_ready(client: httpx2.AsyncClient) -> None:
    """Waits until the model is loaded. Raises TimeoutError."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                if (await client.get("/health")).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Latencies:
    """(sent at, answered at) of every request, and the spans in which the machine was paused."""

    requests: list[tuple[float, float]]
    pauses: list[tuple[float, float]]

    def seconds(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Returns the latencies of the requests outside all pauses."""
        return np.array(
            [
                answered - sent
                for sent, answered in self.requests
                if not any(sent < end and begin < answered for begin, end in self.pauses)
            ]
        )


async def watch(client: httpx2.AsyncClient, done: asyncio.Event) -> Latencies:
    """Sends a request at every tick until `done`."""
    latencies = Latencies([], [])

    async def send() -> None:
        began = time.perf_counter()
        result = await client.get("/health")
        assert result.status_code == 200, result.text
        latencies.requests.append((began, time.perf_counter()))

    async with asyncio.TaskGroup() as group:
        tick = time.perf_counter()
        while not done.is_set():
            group.create_task(send())
            tick += TICK
            await asyncio.sleep(max(tick - time.perf_counter(), 0))
            now = time.perf_counter()
            if now - tick > PAUSE:
                latencies.pauses.append((tick, now))
                tick = now
    return latencies


async def measure_during(
    client: httpx2.AsyncClient, other: httpx2.AsyncClient, body: dict[str, Any] | None
) -> dict[str, float]:
    """Measures /health during one map, or while idle."""
    done = asyncio.Event()
    watching = asyncio.create_task(watch(other, done))
    began = time.perf_counter()
    if body is None:
        await asyncio.sleep(IDLE_SECONDS)
    else:
        result = await client.post("/v1/latent-space", json=body)
        assert result.status_code == 200, result.text
    took = time.perf_counter() - began
    done.set()
    latencies = await watching
    taken = latencies.seconds()
    median, late = np.quantile(taken, [0.5, 0.99])
    discarded = len(latencies.requests) - len(taken)
    return {
        "seconds": took,
        "requests": len(taken),
        "discarded": discarded,
        "p50": median,
        "p99": late,
        "max": taken.max(),
    }


async def measured(address: str) -> dict[str, dict[str, float]]:
    """Measures while idle, then during every projection at every tenth layer."""
    texts, labels = texts_and_labels()
    rows: dict[str, dict[str, float]] = {}
    async with (
        httpx2.AsyncClient(base_url=address, timeout=600.0) as client,
        httpx2.AsyncClient(base_url=address, timeout=600.0) as other,
    ):
        await until_ready(client)
        layers = list(range(0, (await client.get("/v1/capabilities")).json()["layers"], 10))
        for name, method in (("idle", None), *((one, one) for one in PROJECTIONS)):
            body = None
            if method is not None:
                body = {"texts": texts, "labels": labels, "layers": layers, "method": method, "position": "mean"}
            rows[name] = await measure_during(client, other, body)
    return rows


def shown(rows: dict[str, dict[str, float]]) -> Table:
    """Returns the latencies in milliseconds."""
    table = Table(title=f"/health during maps of {TEXTS} texts")
    for heading in ("during", "seconds", "requests", "discarded", "p50 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        latencies_ms = [f"{1000 * row[key]:.1f}" for key in ("p50", "p99", "max")]
        table.add_row(name, f"{row['seconds']:.1f}", str(row["requests"]), str(row["discarded"]), *latencies_ms)
    return table


def main() -> int:
    """Returns 0 if the 99th percentile stays below the bound during every projection, else 1."""
    with served() as address:
        rows = asyncio.run(measured(address))
    console = Console()
    console.print(shown(rows))
    slow = [name for name, row in rows.items() if row["p99"] >= BOUND]
    console.print(f"p99 at or above {1000 * BOUND:.0f} ms: {', '.join(slow) or 'none'}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
