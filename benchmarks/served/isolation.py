"""Measures how much a flood of one key slows the requests of another. Usage: python -m benchmarks.served.isolation [--seconds 20]."""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2

ADMIN = "sk-of-the-isolation-benchmark"
START_SECONDS, STOP_SECONDS = 600.0, 60.0
"""Most that the server may take to load its model, and to stop."""
T = TypeVar("T")
FLOOD_CLIENTS = 32
"""Connections of the flood; each asks again as soon as it is answered."""
LIMITS: dict[str, dict[str, Any]] = {"none": {}, "rows 4": {"rows": 4}, "rows 2": {"rows": 2}}
"""Limits of the flooding key, on a server in its default configuration."""
UNSHARED = ("--set", "contended_running=64")
"""Settings of a server on which a key may fill the batch although another has requests."""
CALM = {"prompt": "The road to the sea", "max_tokens": 16, "temperature": 0, "steering": []}
FLOOD = {"prompt": "Tell me a long story about", "max_tokens": 64, "temperature": 1, "steering": []}


@contextmanager
def served(model: str | None, settings: Sequence[str] = ()) -> Iterator[str]:
    """The address of a server process in its default configuration but for `settings`, with a key, on a free port."""
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0", "--database", "memory://", *settings]
    command += [] if model is None else ["--model", model]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, stderr=output, env={**os.environ, "STEERING_API_KEYS": ADMIN})
        try:
            url = _awaited(process, log, lambda: re.search(r"running on (http://[\d.]+:\d+) ", log.read_text()))[1]
            _awaited(process, log, lambda: _ready(url))
            _wait_for_compiled(url)
            yield url
        finally:
            _ended(process)


def _awaited(process: "subprocess.Popen[bytes]", log: Path, found: Callable[[], T | None]) -> T:
    """Returns what `found` returns once that is true. Ends the benchmark where the server ends before, or takes too long."""
    until = time.monotonic() + START_SECONDS
    while not (value := found()):
        if process.poll() is not None or time.monotonic() > until:
            ended = process.poll() is not None
            state = f"ended with {process.returncode}" if ended else f"was not ready after {START_SECONDS:.0f} s"
            sys.exit(f"the server {state}:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
    return value


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready").is_success
    except httpx2.TransportError:  # the server has ended, which `_awaited` tells
        return False


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_compiled(url: str) -> None:
    """Waits until passes are compiled, at most two minutes: compiling takes the processor from both keys."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        answer = httpx2.get(f"{url}/v1/capabilities", headers={"authorization": f"Bearer {ADMIN}"})
        if answer.json()["executor"].startswith("compiled"):
            return
        time.sleep(1.0)


async def key(client: httpx2.AsyncClient, name: str, limits: dict[str, Any]) -> dict[str, str]:
    """Makes a key; returns the header of its requests."""
    body = {"name": name, "scopes": ["generate"], "limits": limits, "namespace": name}
    answer = await client.post("/v1/keys", json=body, headers={"authorization": f"Bearer {ADMIN}"})
    return {"authorization": f"Bearer {answer.json()['key']}"}


async def calm(client: httpx2.AsyncClient, headers: dict[str, str], seconds: float) -> list[float]:
    """Asks one request after the other; returns how long each took, in seconds."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        start = time.perf_counter()
        answer = await client.post("/v1/generate", json=CALM, headers=headers)
        answer.raise_for_status()
        found.append(time.perf_counter() - start)
    return found


async def flood(client: httpx2.AsyncClient, headers: dict[str, str], answered: list[int]) -> None:
    """Asks without end; what is refused is asked again when the answer says."""
    while True:
        answer = await client.post("/v1/generate", json=FLOOD, headers=headers)
        answered.append(answer.status_code)
        if not answer.is_success:
            await asyncio.sleep(float(answer.headers["retry-after"]))  # as the openai client does


async def measured(url: str, seconds: float, cases: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row for each limit of the flooding key, and one without a flood."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        headers = await key(client, "calm", {})
        await calm(client, headers, seconds / 4)
        rows = [_row("no flood", await calm(client, headers, seconds), [])]
        for name, limit in cases.items():
            flooding, answered = await key(client, "flood", limit), list[int]()
            tasks = [asyncio.create_task(flood(client, flooding, answered)) for _ in range(FLOOD_CLIENTS)]
            await asyncio.sleep(2.0)
            rows.append(_row(f"flood, limit {name}", await calm(client, headers, seconds), answered))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(2.0)
    return rows


def _row(name: str, seconds: list[float], answered: list[int]) -> dict[str, Any]:
    quantiles = statistics.quantiles(seconds, n=20) if len(seconds) > 1 else seconds * 19
    found = {"p50 ms": round(1000 * statistics.median(seconds), 1), "p95 ms": round(1000 * quantiles[18], 1)}
    return {
        "case": name,
        "requests": len(seconds),
        **found,
        "flood answered": answered.count(200),
        "refused": answered.count(429),
    }


def main(arguments: list[str]) -> int:
    """Prints a table as JSON lines with the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--model", default=None)
    options = parser.parse_args(arguments)
    for settings, cases in (((), LIMITS), (UNSHARED, {"none": {}})):
        with served(options.model, settings) as url:
            rows = asyncio.run(measured(url, options.seconds, cases))
        for row in rows:
            ratio = round(row["p50 ms"] / rows[0]["p50 ms"], 2)
            print(json.dumps({"settings": " ".join(settings) or "default", **row, "ratio": ratio}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
