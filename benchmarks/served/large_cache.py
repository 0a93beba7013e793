"""Sends many long requests at once to a server with a given cache: `python -m benchmarks.served.large_cache`.

Prints how many ran at once, and how each ended. Exits with 1 when one was refused or failed.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from typing import Any

import httpx2

from benchmarks.served.isolation import ADMIN, served
from benchmarks.workload import MAX_ID, MIN_ID

HEADERS = {"authorization": f"Bearer {ADMIN}"}
POLL_SECONDS = 0.5


def bodies(requests: int, tokens: int, new_tokens: int) -> list[dict[str, Any]]:
    """Returns requests of `tokens` each, answers included, whose prompts have nothing in common."""
    rng = random.Random(0)
    return [
        {
            "prompt": [rng.randint(MIN_ID, MAX_ID) for _ in range(tokens - new_tokens)],
            "max_tokens": new_tokens,
            "temperature": 0,
            "steering": [],
        }
        for _ in range(requests)
    ]


async def measured(url: str, asked: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Sends all requests at once; returns how many ran together, and the statuses and ends."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=seconds, limits=limits, headers=HEADERS) as client:
        most = [0]
        watch = asyncio.create_task(_watch(client, most))
        began = time.monotonic()
        answers = await asyncio.gather(*(client.post("/v1/generate", json=body) for body in asked))
        elapsed = time.monotonic() - began
        watch.cancel()
        metrics = (await client.get("/metrics")).text
    ends = Counter(
        answer.json()["choices"][0]["finish_reason"] if answer.is_success else answer.text for answer in answers
    )
    return {
        "requests": len(asked),
        "most_running": most[0],
        "statuses": dict(Counter(answer.status_code for answer in answers)),
        "ends": dict(ends),
        "seconds": round(elapsed, 1),
        "preemptions": _metric(metrics, "steering_preemptions_total"),
    }


async def _watch(client: httpx2.AsyncClient, most: list[int]) -> None:
    while True:
        most[0] = max(most[0], int(_metric((await client.get("/metrics")).text, "steering_engine_running")))
        await asyncio.sleep(POLL_SECONDS)


def _metric(text: str, name: str) -> float:
    """Sums the samples of one metric."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def main(arguments: list[str]) -> int:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4000, help="of each request, its answer included")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--megabytes", type=int, default=4096, help="of the cache")
    parser.add_argument("--seconds", type=float, default=1800.0, help="longest life of a request")
    options = parser.parse_args(arguments)
    settings = ["--set", f"cache_megabytes={options.megabytes}", "--set", f"request_seconds={options.seconds}"]
    with served(None, settings) as url:
        found = asyncio.run(
            measured(url, bodies(options.requests, options.tokens, options.new_tokens), options.seconds)
        )
    print(json.dumps(found))
    return int(set(found["statuses"]) != {200})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
