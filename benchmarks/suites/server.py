"""Measures the cost of the server: 32 streams over HTTP against the engine alone."""

import socket
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Result, Task, metric_of
from benchmarks.contenders.process import TIMEOUT_SECONDS, Contender, ContenderFailed, Process
from benchmarks.contenders.registry import ENGINE, SERVED
from benchmarks.suites.throughput import steered
from benchmarks.vectors import directions, scales
from benchmarks.workload import NAMES, prompts, steering
from steering.client import ApiError, Client

ROWS = 32
KIND = "distinct plans"
SERVER = "steering server"
WARM_TOKENS = 4


def run(bench: Bench) -> None:
    """Runs the same plans and prompts in both ways, in turns."""
    engine = bench.contender(ENGINE)
    if engine is None:
        return
    bench.log(f"starting {SERVER}")
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        options = {**bench.model, "port": port, "database": str(Path(folder) / "benchmark.sqlite3")}
        server = Process(SERVER, "benchmarks.contenders.server", options, environment=SERVED)
        clients: Contender | None = None
        try:
            with server.resumed():
                _prepare(server, port)
            clients = Contender("clients", "benchmarks.contenders.http_client")
            _measure(bench, engine, server, clients, port)
        except (ContenderFailed, ApiError) as error:
            bench.drop(SERVER, str(error))
        finally:
            server.close()
            if clients is not None:
                clients.close()


def _measure(bench: Bench, engine: Contender, server: Process, clients: Contender, port: int) -> None:
    profile = bench.profile
    bench.log(f"{ROWS} streams over HTTP, and without")
    tasks: dict[tuple[str, str], Task] = {
        (ENGINE, KIND): partial(steered, engine, "server", KIND, ROWS, profile.short_prompt, profile.new_tokens),
        (SERVER, KIND): partial(_served, bench, server, clients, port),
    }
    results = bench.run_rounds(tasks, profile.server_rounds)
    bench.record(
        {(contender, f"{work}, bare and served"): found for (contender, work), found in results.items()},
        rows=ROWS,
        prompt=profile.short_prompt,
    )
    bare, served = metric_of(results, ENGINE, KIND), metric_of(results, SERVER, KIND)
    bench.compare("server", served, bare)
    if "server" in bench.ratios:  # reported as a loss
        ratio = bench.ratios["server"]
        ratio.rounds = [1.0 - share for share in ratio.rounds]


def _served(bench: Bench, server: Process, clients: Contender, port: int, seed: int) -> Result:
    profile = bench.profile
    with server.resumed():
        server.reset_peak_memory()
        warm = _bodies(profile.short_prompt, WARM_TOKENS, -2)
        clients.request("stream", port=port, bodies=warm, new_tokens=WARM_TOKENS)
        bodies = _bodies(profile.short_prompt, profile.new_tokens, seed)
        result = clients.request("stream", port=port, bodies=bodies, new_tokens=profile.new_tokens)
        return {**result, "peak_bytes": server.peak()}


def _bodies(length: int, new_tokens: int, seed: int) -> list[dict[str, object]]:
    rows = zip(prompts(ROWS, length, seed), steering(KIND, ROWS), strict=True)
    return [{"prompt": p, "steering": s, "max_tokens": new_tokens, "temperature": 0, "stream": True} for p, s in rows]


def _prepare(server: Process, port: int) -> None:
    """Waits until the server is ready and registers the vectors of the workload. Raises ContenderFailed, ApiError."""
    with Client(f"http://127.0.0.1:{port}") as client:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not _ready(client):
            if not server.alive or time.monotonic() > deadline:
                raise ContenderFailed(f"the server did not become ready; see {server.log}")
            time.sleep(0.5)
        found = client.capabilities()
        for name in NAMES:
            numbers = directions(name, found.layers, found.d_model)
            client.register_vector(name, numbers, scale=scales(found.layers))


def _ready(client: Client) -> bool:
    try:
        client.capabilities()
    except ApiError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
