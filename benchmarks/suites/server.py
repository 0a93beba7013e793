"""What the server costs: 32 streams over HTTP, from another process, beside the bare engine in its own."""

import socket
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.bench import Answer, Bench, Turn, figures_of
from benchmarks.contenders.process import LONGEST_ANSWER, Process, Side, SideFailed
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
    """The same plans and prompts on both ways, in turns."""
    engine = bench.side(ENGINE)
    if engine is None:
        return
    bench.tell(f"starting {SERVER}")
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        options = {**bench.subject, "port": port, "database": str(Path(folder) / "benchmark.sqlite3")}
        server = Process(SERVER, "benchmarks.contenders.server", options, environment=SERVED)
        clients: Side | None = None
        try:
            with server.awake():
                _prepare(server, port)
            clients = Side("clients", "benchmarks.contenders.http_client")
            _measure(bench, engine, server, clients, port)
        except (SideFailed, ApiError) as error:
            bench.lose(SERVER, str(error))
        finally:
            server.close()
            if clients is not None:
                clients.close()


def _measure(bench: Bench, engine: Side, server: Process, clients: Side, port: int) -> None:
    effort = bench.effort
    bench.tell(f"{ROWS} streams over HTTP, and without")
    turns: dict[tuple[str, str], Turn] = {
        (ENGINE, KIND): partial(steered, engine, "server", KIND, ROWS, effort.short_prompt, effort.new_tokens),
        (SERVER, KIND): partial(_served, bench, server, clients, port),
    }
    answers = bench.take_turns(turns, effort.close_rounds)
    bench.keep(
        {(side, f"{work}, bare and served"): found for (side, work), found in answers.items()},
        rows=ROWS,
        prompt=effort.short_prompt,
    )
    bare, served = figures_of(answers, ENGINE, KIND), figures_of(answers, SERVER, KIND)
    bench.compare("server", served, bare)
    if "server" in bench.ratios:  # a loss, not a ratio
        ratio = bench.ratios["server"]
        ratio.rounds = [1.0 - share for share in ratio.rounds]


def _served(bench: Bench, server: Process, clients: Side, port: int, seed: int) -> Answer:
    effort = bench.effort
    with server.awake():
        server.forget_peak()
        warm = _bodies(effort.short_prompt, WARM_TOKENS, -2)
        clients.ask("stream", port=port, bodies=warm, new_tokens=WARM_TOKENS)
        bodies = _bodies(effort.short_prompt, effort.new_tokens, seed)
        answer = clients.ask("stream", port=port, bodies=bodies, new_tokens=effort.new_tokens)
        return {**answer, "peak_bytes": server.peak()}


def _bodies(length: int, new_tokens: int, seed: int) -> list[dict[str, object]]:
    rows = zip(prompts(ROWS, length, seed), steering(KIND, ROWS), strict=True)
    return [{"prompt": p, "steering": s, "max_tokens": new_tokens, "temperature": 0, "stream": True} for p, s in rows]


def _prepare(server: Process, port: int) -> None:
    """Waits until the server is ready and registers the workload's vectors. Raises SideFailed, ApiError."""
    with Client(f"http://127.0.0.1:{port}") as client:
        deadline = time.monotonic() + LONGEST_ANSWER
        while not _ready(client):
            if not server.alive or time.monotonic() > deadline:
                raise SideFailed(f"the server did not become ready; see {server.log}")
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
