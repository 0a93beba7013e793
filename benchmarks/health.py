"""`python -m benchmarks.health`: how soon /health answers while 500 texts are read and drawn by every projection."""

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
"""Seconds between two questions to /health, whether the last was answered or not: a stall is met by every tick in it."""
STOOD_STILL = 0.05
"""Seconds this process, which has nothing to do, may be late for a tick; beyond it the machine itself stood still."""
BOUND = 0.1
IDLE_SECONDS = 3.0
READY_SECONDS = 300.0


def texts_and_labels() -> tuple[list[Any], list[str]]:
    """Texts and conversations of the starter concepts, each labelled by its concept."""
    pairs = [(_words(text), name) for name in CONCEPTS for text in chain(*load_concept(name))]
    chosen = [pairs[int(index)] for index in np.linspace(0, len(pairs) - 1, TEXTS)]
    return [text for text, _ in chosen], [name for _, name in chosen]


def _words(text: Text) -> Any:
    return text if isinstance(text, str) else [asdict(message) for message in text]


@contextmanager
def served() -> Iterator[str]:
    """The address of a server of the embedded model in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "STEERING_CACHE_DIR": str(cache_dir()),
            "STEERING_DATABASE": f"sqlite:///{folder}/health.sqlite3",
            "STEERING_COMPILED": "false",  # the compiler would be measured with it
            "STEERING_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env={**os.environ, **settings})
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


async def until_ready(client: httpx2.AsyncClient) -> None:
    """Returns when the model is loaded. Raises TimeoutError."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                if (await client.get("/health")).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Watched:
    """(asked at, answered at) of every question, and the spans in which the machine stood still."""

    questions: list[tuple[float, float]]
    stood_still: list[tuple[float, float]]

    def fair(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds of the questions that met no such span."""
        return np.array(
            [
                answered - asked
                for asked, answered in self.questions
                if not any(asked < end and begin < answered for begin, end in self.stood_still)
            ]
        )


async def watch(client: httpx2.AsyncClient, done: asyncio.Event) -> Watched:
    """Asks /health at every tick until `done`."""
    watched = Watched([], [])

    async def ask() -> None:
        began = time.perf_counter()
        answer = await client.get("/health")
        assert answer.status_code == 200, answer.text
        watched.questions.append((began, time.perf_counter()))

    async with asyncio.TaskGroup() as group:
        tick = time.perf_counter()
        while not done.is_set():
            group.create_task(ask())
            tick += TICK
            await asyncio.sleep(max(tick - time.perf_counter(), 0))
            now = time.perf_counter()
            if now - tick > STOOD_STILL:
                watched.stood_still.append((tick, now))
                tick = now
    return watched


async def beside(
    client: httpx2.AsyncClient, other: httpx2.AsyncClient, body: dict[str, Any] | None
) -> dict[str, float]:
    """One map, or an idle while, and what /health did meanwhile."""
    done = asyncio.Event()
    watching = asyncio.create_task(watch(other, done))
    began = time.perf_counter()
    if body is None:
        await asyncio.sleep(IDLE_SECONDS)
    else:
        answer = await client.post("/v1/latent-space", json=body)
        assert answer.status_code == 200, answer.text
    took = time.perf_counter() - began
    done.set()
    watched = await watching
    taken = watched.fair()
    median, late = np.quantile(taken, [0.5, 0.99])
    aside = len(watched.questions) - len(taken)
    return {"seconds": took, "asked": len(taken), "aside": aside, "p50": median, "p99": late, "max": taken.max()}


async def measured(address: str) -> dict[str, dict[str, float]]:
    """Every projection at every tenth layer, after an idle while."""
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
            rows[name] = await run_in_thread(client, other, body)
    return rows


def shown(rows: dict[str, dict[str, float]]) -> Table:
    """The figures in milliseconds."""
    table = Table(title=f"/health while {TEXTS} texts are read and drawn")
    for heading in ("beside", "seconds", "asked", "set aside", "p50 ms", "p99 ms", "max ms"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        figures = [f"{1000 * row[key]:.1f}" for key in ("p50", "p99", "max")]
        table.add_row(name, f"{row['seconds']:.1f}", str(row["asked"]), str(row["aside"]), *figures)
    return table


def main() -> int:
    """0 when the 99th percentile stays below the bound beside every projection, else 1."""
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
