"""Compares a server after mixed work with a fresh one: python -m benchmarks.served.steady [--minutes 60] [--share 0.3] [--rounds 5].

Mixed work: extractions, latent spaces, readouts, activations, the logit lens, scores, comparisons, calibrations and generation of other
lengths, during a share of each minute. Then a second server is started on the same machine, and both answer the same prompts in turns;
each is stopped while the other is measured. Prints tokens/s, their ratios and the resident memory.
"""

import argparse
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.machine import describe
from benchmarks.served.process import NEW_TOKENS, Server, answer, ours
from benchmarks.workload import NAMES, prompts
from steering.client import Client
from steering.model.embedded import EMBEDDED_MODEL

SIZES = (1, 8, 32)
KIND = "distinct plans"
WORDS = (
    "river",
    "market",
    "winter",
    "engine",
    "letter",
    "garden",
    "planet",
    "bridge",
    "doctor",
    "music",
    "harbour",
    "window",
)


def work(client: Client, seed: int) -> list[Callable[[], object]]:
    """Returns one piece of work of each kind, on texts that the seed determines."""
    random_ = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(random_.choices(WORDS, k=words))

    steering = [{"vector": random_.choice(NAMES), "strength": 0.5}]
    texts = [text(random_.randint(5, 40)) for _ in range(40)]
    pairs = [{"positive": f"I love the {text(4)}", "negative": f"I hate the {text(4)}"} for _ in range(24)]
    return [
        lambda: client.extract_vector(f"work-{seed % 8}", pairs=pairs),
        lambda: client.latent_space(texts, layers=[1, 15, 29]),
        lambda: client.readout(texts[:16], vectors=[NAMES[0]]),
        lambda: client.activations_json(texts[:4], layers=[10]),
        lambda: client.logit_lens(text(30)),
        lambda: client.score(text(60), [text(20)]),
        lambda: client.compare(text(20), steering=steering, max_tokens=48),
        lambda: client.calibrate(NAMES[seed % len(NAMES)]),
        *(lambda n=n: client.generate(text(n), steering=steering, max_tokens=64) for n in (4, 60, 700)),
    ]


def mixed_work(url: str, minutes: float, share: float) -> int:
    """Does mixed work during a share of each minute. Returns how many pieces were done."""
    done = 0
    end = time.monotonic() + 60 * minutes
    with Client(url, timeout=600.0) as client:
        for seed in itertools.count():
            for piece in work(client, seed):
                began = time.monotonic()
                piece()
                done += 1
                took = time.monotonic() - began
                if time.monotonic() + took * (1 / share - 1) > end:
                    return done
                time.sleep(took * (1 / share - 1))
    raise AssertionError


def turns(servers: dict[str, Server], rows: int, rounds: int) -> dict[str, list[float]]:
    """Returns tokens/s of each server, in turns on prompts of their own; the first round is discarded."""
    found: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(-1, rounds):
        for name in list(servers)[:: 1 if number % 2 else -1]:
            seconds = answer(servers[name], KIND, prompts(rows, 32, f"steady {name} {number}"))[1]
            found[name].append(rows * NEW_TOKENS / seconds)
    return {name: speeds[1:] for name, speeds in found.items()}


def main(arguments: Sequence[str]) -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served.steady", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=0.3, help="of the time that work is done in")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--until", type=Path, help="wait for this file before both are measured")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is stopped
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        used, _ = ours(folder, EMBEDDED_MODEL, stack)
        process = psutil.Process(used.process_id)
        with used.resumed():
            before = process.memory_info().rss
            done = mixed_work(f"http://127.0.0.1:{used.port}", options.minutes, options.share)
            print(
                f"{done} pieces of work, resident {before / 1e6:.0f} MB before, {process.memory_info().rss / 1e6:.0f} MB after",
                flush=True,
            )
        while options.until is not None and not options.until.exists():
            time.sleep(1)
        print(describe("cpu"), flush=True)
        fresh, _ = ours(folder, EMBEDDED_MODEL, stack)
        for rows in SIZES:
            speeds = turns({"used": used, "fresh": fresh}, rows, options.rounds)
            ratios = [own / other for own, other in zip(speeds["used"], speeds["fresh"], strict=True)]
            print(
                f"{rows} requests: {statistics.median(speeds['used']):.0f} tokens/s after the work,"
                f" {statistics.median(speeds['fresh']):.0f} fresh, {statistics.median(ratios):.3f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
