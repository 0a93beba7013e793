"""Server processes on this machine, of which one runs at a time, and our server with the vectors of the workload."""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2

from benchmarks.contenders.http_client import StreamedResponse, read_all
from benchmarks.contenders.registry import SERVED
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.vectors import directions, scales
from benchmarks.workload import NAMES, steering
from steering.client import Client

NEW_TOKENS = 64
START_SECONDS = 1500.0


class Server:
    """A server process on a free port, which is stopped unless it is measured."""

    def __init__(
        self, command: Sequence[str], port: int, ready: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = port
        self._process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            if self._process.poll() is not None or time.monotonic() > until:
                self.close()
                raise SystemExit(f"{' '.join(command)} ended or was not ready in time")
            time.sleep(0.2)

    @property
    def process_id(self) -> int:
        """Returns the id of the server's process."""
        return self._process.pid

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Lets it run for the length of a block."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Stops it until the next measurement."""
        self._process.send_signal(signal.SIGSTOP)

    def measure(self, requests: Sequence[bytes], end: bytes, token: bytes) -> tuple[float, float, int]:
        """Sends all requests at once. Returns the seconds to the first token, by median, and to the last, and the peak memory in bytes."""
        with self.resumed():
            reset_peak([self._process.pid])
            start = time.perf_counter()
            responses = [StreamedResponse(self.port, request, token) for request in requests]
            read_all(responses)
            last = time.perf_counter() - start
            return (
                statistics.median(one.first(end) - start for one in responses),
                last,
                peak_bytes([self._process.pid]) or 0,
            )

    def close(self) -> None:
        """Ends the process."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).is_success
    except httpx2.TransportError:
        return False


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def post(path: str, body: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a request."""
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    ).encode() + content


def ours(folder: str, source: str, stack: ExitStack) -> tuple[Server, Mapping[str, Any]]:
    """Starts our server with the vectors of the workload; returns it with its capabilities."""
    port = free_port()
    options = {"source": source, "device": "cpu", "port": port, "database": f"{folder}/{port}.sqlite3"}
    command = [sys.executable, "-m", "benchmarks.contenders.server", json.dumps(options)]
    server = Server(command, port, "/health/ready", SERVED)
    stack.callback(server.close)
    with Client(f"http://127.0.0.1:{port}") as client:
        capabilities = httpx2.get(f"http://127.0.0.1:{port}/v1/capabilities").json()
        layers, width = capabilities["layers"], capabilities["d_model"]
        for name in NAMES:
            client.register_vector(name, directions(name, layers, width), scale=scales(layers))
    server.stop()
    return server, capabilities


def answer(server: Server, kind: str, given: list[list[int]]) -> tuple[float, float, int]:
    """Sends prompts with a kind of steering; see `Server.measure`."""
    bodies = [
        {"prompt": prompt, "steering": plan, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
        for prompt, plan in zip(given, steering(kind, len(given)), strict=True)
    ]
    return server.measure([post("/v1/generate", body) for body in bodies], b"event: done\n", b"event: token\n")
