"""Races llama.cpp's server over one GGUF file, over HTTP: python -m benchmarks.served.llama_cpp LLAMA_SERVER [FILE.gguf] [--rounds 3].

LLAMA_SERVER: the program llama-server; the source package of llama-cpp-python contains it (vendor/llama.cpp). It has a slot for each
request, and runs once plain and once with one control vector at every layer, which all of its requests share. Ours answers the same
prompts unsteered, and with other adds at all layers in every request. Prompts are random token ids, 64 new tokens, greedy; caches of
prompts are off or of no effect. All others are stopped while one is measured.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.core.gguf_format import write_control_vector
from benchmarks.machine import describe
from benchmarks.served.process import NEW_TOKENS, Server, answer, free_port, ours, post
from benchmarks.vectors import directions
from benchmarks.workload import NAMES, prompts
from steering.model.embedded import embedded_gguf

SETTINGS = ((1, 32), (8, 32), (32, 32), (1, 1820), (8, 1820))
"""Requests at once, and tokens of each prompt."""
UNSTEERED, DISTINCT = "unsteered", "distinct plans"
PLAIN, VECTOR = "llama.cpp", "llama.cpp, one vector for all"


def llama(program: str, model: Path, rows: int, length: int, vector: Path | None, stack: ExitStack) -> Server:
    """Starts llama.cpp's server with a slot for each request."""
    port, threads = free_port(), str(len(os.sched_getaffinity(0)))
    command = [program, "-m", str(model), "--port", str(port), "-t", threads, "-tb", threads, "-np", str(rows)]
    command += ["-c", str(rows * (-(-(length + NEW_TOKENS + 8) // 256) * 256)), "--cache-ram", "0", "--no-webui"]
    command += [] if vector is None else ["--control-vector-scaled", f"{vector}:0.6"]
    server = Server(command, port, "/health")
    stack.callback(server.close)
    server.stop()
    return server


def race(program: str, model: Path, rounds: int, settings: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Returns a row for each setting and contender: tokens/s, first token and peak memory, by median of the rounds."""
    found = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as whole:
        server, capabilities = ours(folder, str(model), whole)
        print(f"ours: {capabilities['executor']}, bytes of weights {capabilities['weight_bytes']}", flush=True)
        vector = Path(folder, "vector.gguf")
        given = directions(NAMES[0], capabilities["layers"], capabilities["d_model"])
        above = {int(layer): numbers for layer, numbers in given.items() if layer != "0"}  # llama.cpp steers no layer 0
        vector.write_bytes(write_control_vector(above, dict.fromkeys(above, 1.0), "any"))
        for rows, length in settings:
            with ExitStack() as stack:
                peers = {
                    PLAIN: llama(program, model, rows, length, None, stack),
                    VECTOR: llama(program, model, rows, length, vector, stack),
                }
                results: dict[str, list[tuple[float, float, int]]] = {}
                for number in range(-1, rounds):  # the first is discarded
                    texts, names = prompts(rows, length, number), [UNSTEERED, DISTINCT, *peers]
                    for name in names[number % 4 :] + names[: number % 4]:
                        one = _theirs(peers[name], texts) if name in peers else answer(server, name, texts)
                        results.setdefault(name, []).append(one)
            for name, measured in results.items():
                first, seconds, memory = (statistics.median(part) for part in zip(*measured[1:], strict=True))
                ratios = [their[1] / own[1] for own, their in zip(measured[1:], results[PLAIN][1:], strict=True)]
                found.append({
                    "prompt": length, "rows": rows, "contender": name, "tokens/s": rows * NEW_TOKENS / seconds,
                    "first token ms": 1000 * first, "peak MB": memory / 1e6, "of llama.cpp": statistics.median(ratios),
                    "rounds": f"{min(ratios):.2f} to {max(ratios):.2f}",
                })  # fmt: skip
                print(
                    " | ".join(
                        f"{value:.4g}" if isinstance(value, float) else str(value) for value in found[-1].values()
                    ),
                    flush=True,
                )
    return found


def _theirs(server: Server, given: list[list[int]]) -> tuple[float, float, int]:
    fixed = {"n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": True}
    requests = [post("/completion", {"prompt": prompt, **fixed}) for prompt in given]
    return server.measure(requests, f'"tokens_predicted":{NEW_TOKENS}'.encode(), b'"stop":false')


def main(arguments: list[str]) -> None:
    """Runs the race and prints its rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served.llama_cpp", description=__doc__)
    parser.add_argument("llama_server", help="path of llama-server")
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; default: the embedded one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", type=int, nargs="+", choices=range(len(SETTINGS)), default=range(len(SETTINGS)))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is stopped
    machine = describe("cpu")
    print(
        f"{machine}\nprompt | rows | contender | tokens/s | first token ms | peak MB | of llama.cpp | rounds",
        flush=True,
    )
    settings = [SETTINGS[index] for index in options.settings]
    race(options.llama_server, options.model or embedded_gguf(), options.rounds, settings)


if __name__ == "__main__":
    main(sys.argv[1:])
