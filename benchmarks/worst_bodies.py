"""`python -m benchmarks.worst_bodies [result.json]`: sends the worst bodies of every route to a real server of the embedded model, and
measures meanwhile how long /health/live takes and how much memory the server holds. For an idle machine; takes a few minutes.

The server has its default configuration, except that it does not compile (which would be measured too).
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.contenders.open_engine import cache_dir
from benchmarks.served.worst_bodies import BODIES, Body, Limits, without_case

TICK = 0.01
"""Seconds between two requests to /health/live."""
BOUND = 0.1
"""Seconds above the 99th percentile while idle that /health/live may take."""
IDLE_SECONDS = 6.0
READY_SECONDS = 300.0
LONGEST = 10.0
"""Seconds after which the client of a body hangs up."""
SETTLE_SECONDS = 0.5
"""Seconds that are still measured after an answer: a job has begun by then, and memory is returned."""
TOTAL_SECONDS = 300.0
"""No further body is sent after so long."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    port: int
    process: int

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        media_type: str = "application/json",
        seconds: float = 60.0,
    ) -> tuple[int, bytes]:
        """Sends one request and returns status and content; status 0 where it took too long or the connection was closed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            headers = {} if body is None else {"Content-Type": media_type}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def resident(self) -> int:
        """Returns the resident memory in bytes."""
        fields = Path(f"/proc/{self.process}/statm").read_text(encoding="ascii").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def served() -> Iterator[Served]:
    """Runs a server in its own process until the model is loaded, and ends it. Raises TimeoutError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        given = {name: value for name, value in os.environ.items() if not name.startswith("STEERING_")}
        settings = {
            "STEERING_CACHE_DIR": str(cache_dir()),
            "STEERING_DATABASE": f"sqlite:///{folder}/worst.sqlite3",
            "STEERING_COMPILED": "false",
            "STEERING_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-P", "-m", "app.cli.main", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env={**given, **settings})
        server = Served(port, process.pid)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while server.request("GET", "/health/ready", seconds=5.0)[0] != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError("the server did not become ready")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(40)
            process.kill()
            process.wait()


class Watch:
    """Asks /health/live at every tick in a thread of its own, and reads the resident memory of the server."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seconds: list[float] = []
        self.peak = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60.0)
        while not self._stopped.is_set():
            began = time.perf_counter()
            try:
                connection.request("GET", "/health/live")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
            self.seconds.append(time.perf_counter() - began)
            with suppress(OSError):
                self.peak = max(self.peak, self._server.resident())
            self._stopped.wait(TICK)
        connection.close()


@dataclass(frozen=True, slots=True)
class Row:
    """What one body did. longest: of /health/live, in seconds. megabytes: resident at most. as_expected: whether the status was."""

    route: str
    name: str
    size: int
    status: int
    seconds: float
    longest: float
    megabytes: float
    as_expected: bool


def measured(server: Served, body: Body, limits: Limits) -> Row:
    """Sends one body and measures until a moment after its answer."""
    content = body.content(limits)
    method, path = body.route.split()
    path = path.format(name="mood", key_id="none")
    address = f"{path}?{urlencode(body.query)}" if body.query else path
    media_type = "application/json"
    if path.endswith("/batch"):
        media_type = "application/jsonl"
    elif path.endswith("/import"):
        media_type = "application/octet-stream"
    with Watch(server) as watch:
        began = time.perf_counter()
        status, answer = server.request(method, address, content, media_type, LONGEST)
        took = time.perf_counter() - began
        time.sleep(SETTLE_SECONDS)
    if status == 202:
        server.request("DELETE", f"/v1/jobs/{json.loads(answer)['id']}")
    as_expected = (
        status // 100 == body.status or (status == 0 and body.status == 2) or (body.status == 4 and status == 507)
    )
    return Row(body.route, body.name, len(content), status, took, max(watch.seconds), watch.peak / 2**20, as_expected)


def measure(server: Served) -> tuple[float, float, list[Row]]:
    """Returns the 99th percentile of /health/live and the memory while idle, and a row for each body. Raises ValueError for a route
    without a case."""
    if missing := without_case(json.loads(server.request("GET", "/openapi.json")[1])):
        raise ValueError(f"no case, or no route: {', '.join(sorted(missing))}")
    limits: dict[str, Any] = json.loads(server.request("GET", "/v1/capabilities")[1])
    directions = {str(layer): [1.0] * limits["d_model"] for layer in (10, 12)}
    server.request("POST", "/v1/vectors", json.dumps({"name": "mood", "directions": directions}).encode())
    server.request("POST", "/v1/generate", b'{"prompt":"a","max_tokens":8}')
    with Watch(server) as watch:
        time.sleep(IDLE_SECONDS)
    idle, memory = float(np.quantile(watch.seconds, 0.99)), watch.peak / 2**20
    rows: list[Row] = []
    began = time.monotonic()
    for body in BODIES:
        if time.monotonic() - began > TOTAL_SECONDS:
            break
        rows.append(measured(server, body, limits))
    return idle, memory, rows


def shown(idle: float, memory: float, most: float, rows: list[Row]) -> Table:
    """Returns the rows as a table; what is beyond a bound is marked."""
    table = Table(title=f"idle: /health/live p99 {1000 * idle:.1f} ms, {memory:.0f} MB; memory at most {most:.0f} MB")
    for heading in ("route", "body", "KB", "status", "seconds", "health ms", "MB"):
        table.add_column(heading, justify="left" if heading in ("route", "body") else "right")
    for row in rows:
        slow, large = row.longest > idle + BOUND, row.megabytes > most
        table.add_row(
            row.route,
            row.name,
            f"{row.size / 1000:.0f}",
            f"{row.status or 'cut'}{'' if row.as_expected else ' !'}",
            f"{row.seconds:.1f}",
            f"{1000 * row.longest:.0f}{' !' if slow else ''}",
            f"{row.megabytes:.0f}{' !' if large else ''}",
        )
    return table


def main() -> int:
    """Returns 0 if every body was answered as expected, within the bounds of time and memory, else 1."""
    with served() as server:
        limit = int(os.environ.get("STEERING_MEMORY_MEGABYTES", "2048"))
        idle, memory, rows = measure(server)
    most = memory + limit
    console = Console(width=120)
    console.print(shown(idle, memory, most, rows))
    beyond = [row for row in rows if row.longest > idle + BOUND or row.megabytes > most or not row.as_expected]
    left_out = len(BODIES) - len(rows)
    console.print(f"{len(rows)} bodies, {len(beyond)} beyond a bound (!), {left_out} left out for lack of time")
    if len(sys.argv) > 1:
        result = {"idle": idle, "memory": memory, "rows": [asdict(row) for row in rows]}
        Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if beyond or left_out else 0


if __name__ == "__main__":
    sys.exit(main())
