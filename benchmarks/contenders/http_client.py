"""Streaming clients of the server, as light as they can be: sockets, and what came when. No torch, no HTTP library.

Whoever reads an answer sits elsewhere as a rule; here the clients share the processors with what is measured. So they
read all sockets together, shortly after something came on one of them, and look at what they read when all is over.
"""

import json
import os
import select
import socket
import time
from typing import Any

from benchmarks.contenders.protocol import answer_questions
from benchmarks.stream_timing import figures

TOKEN, DONE = b"event: token\n", b"event: done\n"
GATHER_SECONDS = 0.002
"""From the first sign of new events to reading them: no arrival is noted later than this after it could be read."""
READ_BYTES = 1 << 14


class Answer:
    """One answer as it arrives: pieces of bytes, and when each was read."""

    def __init__(self, port: int, request: bytes) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._connection.sendall(request)
        self._pieces: list[tuple[float, bytes]] = []
        self.file = self._connection.fileno()

    def read(self, now: float) -> bool:
        """Takes what is there; whether more may come."""
        data = os.read(self.file, READ_BYTES)
        self._pieces.append((now, data))
        return bool(data)

    def arrivals(self, new_tokens: int) -> list[float]:
        """When each token had been read, from the beginning of its event. Raises RuntimeError for any other answer."""
        self._connection.close()
        text = b"".join(data for _, data in self._pieces)
        times: list[float] = []
        read = begun = 0
        for now, data in self._pieces:
            read += len(data)
            while (found := text.find(TOKEN, begun, read)) >= 0:
                times.append(now)
                begun = found + len(TOKEN)
        if len(times) < new_tokens or DONE not in text:
            end = text[-500:].decode(errors="replace")
            raise RuntimeError(f"{len(times)} of {new_tokens} tokens; the answer ends: {end}")
        return times[:new_tokens]


def stream(port: int, bodies: list[dict[str, Any]], new_tokens: int) -> dict[str, Any]:
    """One request a body, all at once; see `streams.figures`. The clock starts before the first connection is made."""
    requests = [_request(port, body) for body in bodies]
    start = time.perf_counter()
    answers = [Answer(port, request) for request in requests]
    _read_all(answers)
    return figures(start, [answer.arrivals(new_tokens) for answer in answers])


def _request(port: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


def _read_all(answers: list[Answer]) -> None:
    """Until every answer has ended."""
    by_file = {answer.file: answer for answer in answers}
    with select.epoll() as poll:
        for file in by_file:
            poll.register(file, select.EPOLLIN)
        while by_file:
            poll.poll()
            time.sleep(GATHER_SECONDS)
            ready = poll.poll(0)
            now = time.perf_counter()
            for file, _ in ready:
                if not by_file[file].read(now):
                    poll.unregister(file)
                    del by_file[file]


def begin(_options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nothing to set up."""
    return {"stream": stream}, {}


if __name__ == "__main__":
    answer_questions(begin)
