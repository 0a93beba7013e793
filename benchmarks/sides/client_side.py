"""Streaming clients of the server, as light as they can be: sockets, and a count of events. No torch, no HTTP library."""

import asyncio
import json
import time
from typing import Any

from benchmarks.answering import answer_questions
from benchmarks.streams import figures

TOKEN, DONE = b"event: token\n", b"event: done\n"
OVERLAP = len(TOKEN) - 1
"""Bytes kept from one read to the next: a marker cut in two is found, a whole one is not found twice."""


def stream(port: int, bodies: list[dict[str, Any]], new_tokens: int) -> dict[str, Any]:
    """One request a body, all at once; see `streams.figures`. The clock starts before the first connection is made."""
    return asyncio.run(_all(port, bodies, new_tokens))


async def _all(port: int, bodies: list[dict[str, Any]], new_tokens: int) -> dict[str, Any]:
    requests = [_request(port, body) for body in bodies]
    start = time.perf_counter()
    arrivals = await asyncio.gather(*(_one(port, request, new_tokens) for request in requests))
    return figures(start, arrivals)


def _request(port: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


async def _one(port: int, request: bytes, new_tokens: int) -> list[float]:
    """Arrival times of the tokens of one answer. Raises RuntimeError for any other answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    times: list[float] = []
    text = b""
    done = False
    while data := await reader.read(1 << 16):
        now = time.perf_counter()
        text = text[-OVERLAP:] + data
        times.extend([now] * text.count(TOKEN))
        done = done or DONE in text
    writer.close()
    if len(times) < new_tokens or not done:
        raise RuntimeError(f"{len(times)} of {new_tokens} tokens; the answer ends: {text.decode(errors='replace')}")
    return times[:new_tokens]


def begin(_options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nothing to set up."""
    return {"stream": stream}, {}


if __name__ == "__main__":
    answer_questions(begin)
