"""Measures the cost of steering and of monitors: our engine against itself at 32 rows, in many short rounds."""

from functools import partial

from benchmarks.bench import Bench, Result, Task, metric_of
from benchmarks.contenders.process import Contender
from benchmarks.contenders.registry import ENGINE
from benchmarks.suites.throughput import steered
from benchmarks.workload import KINDS, prompts

ROWS = 32
MONITORS = (1, 4)
"""Monitors that read every token of every row, each at a layer of its own."""


def run(bench: Bench) -> None:
    """Compares every kind of steering with none."""
    engine = bench.contender(ENGINE)
    if engine is None:
        return
    profile = bench.profile
    bench.log(f"cost of steering at {ROWS} rows")
    tasks: dict[tuple[str, str], Task] = {
        (ENGINE, kind): partial(steered, engine, "cost", kind, ROWS, profile.short_prompt, profile.new_tokens)
        for kind in KINDS
    }
    for count in MONITORS:
        run_once = partial(monitored, engine, count, ROWS, profile.short_prompt, profile.new_tokens)
        tasks[ENGINE, f"{count} monitors"] = run_once
    results = bench.run_rounds(tasks, profile.close_rounds)
    bench.record(
        {(contender, f"{kind}, close"): found for (contender, kind), found in results.items()},
        rows=ROWS,
        prompt=profile.short_prompt,
    )
    unsteered = metric_of(results, ENGINE, "unsteered")
    for kind in (*KINDS[1:], *(f"{count} monitors" for count in MONITORS)):
        bench.compare(kind, metric_of(results, ENGINE, kind), unsteered)


def monitored(engine: Contender, count: int, rows: int, length: int, new_tokens: int, seed: int) -> Result:
    """Runs our engine unsteered under monitors, on prompts that no other run uses."""
    batch = prompts(rows, length, f"{count} monitors {seed}")
    return engine.request("generate", prompts=batch, new_tokens=new_tokens, steering=[[]] * rows, monitors=count)
