"""Measures requests that arrive together while other processes keep one or two processors busy, against vLLM in the same situation."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

from benchmarks.bench import Bench, fastest, metric_of
from benchmarks.contenders.registry import ENGINE, VLLM
from benchmarks.suites.throughput import engine_tasks, vllm_tasks

KIND = "distinct plans"
SIZES = (1, 8, 32)
MOST_BUSY = 2
"""Processors that are kept busy, first one and then more."""


def run(bench: Bench) -> None:
    """Compares tokens/s at each size. The contenders are started before the other process is."""
    started = [bench.contender(name) for name in (ENGINE, *VLLM)]
    if not any(started):
        return
    length, processors = bench.profile.short_prompt, sorted(os.sched_getaffinity(0))
    for count, rows in product(range(1, min(len(processors), MOST_BUSY) + 1), SIZES):
        with busy(processors[-count:]):
            bench.log(f"{rows} requests, prompts of {length}, kept busy: {count} processors")
            tasks = engine_tasks(bench, rows, length, (KIND,), "busy processor") | vllm_tasks(bench, rows, length)
            results = bench.run_rounds(tasks, bench.profile.rounds)
            named = {(name, f"{work}, {count} processors kept busy"): found for (name, work), found in results.items()}
            bench.record(named, rows=rows, prompt=length)
            vllm = fastest([metric_of(results, name, "unsteered") for name in VLLM])
            bench.compare(f"{'busy' if count == 1 else 'two busy'} {rows}", metric_of(results, ENGINE, KIND), vllm)


@contextmanager
def busy(processors: Sequence[int]) -> Iterator[None]:
    """Keeps processors busy, each with a process that never waits."""
    program = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", program, str(one)]) for one in processors]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
