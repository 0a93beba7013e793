"""Measures requests that arrive together while another process keeps one processor busy, against vLLM in the same situation."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.bench import Bench, fastest, metric_of
from benchmarks.contenders.registry import ENGINE, VLLM
from benchmarks.suites.throughput import engine_tasks, vllm_tasks

KIND = "distinct plans"
SIZES = (1, 8, 32)


def run(bench: Bench) -> None:
    """Compares tokens/s at each size. The contenders are started before the other process is."""
    started = [bench.contender(name) for name in (ENGINE, *VLLM)]
    if not any(started):
        return
    length, processor = bench.profile.short_prompt, max(os.sched_getaffinity(0))
    with busy(processor):
        for rows in SIZES:
            bench.log(f"{rows} requests, prompts of {length}, processor {processor} kept busy")
            tasks = engine_tasks(bench, rows, length, (KIND,), "busy processor") | vllm_tasks(bench, rows, length)
            results = bench.run_rounds(tasks, bench.profile.rounds)
            named = {(name, f"{work}, a processor kept busy"): found for (name, work), found in results.items()}
            bench.record(named, rows=rows, prompt=length)
            vllm = fastest([metric_of(results, name, "unsteered") for name in VLLM])
            bench.compare(f"busy {rows}", metric_of(results, ENGINE, KIND), vllm)


@contextmanager
def busy(processor: int) -> Iterator[None]:
    """Keeps one processor busy with a process that never waits."""
    program = f"import os\nos.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()
