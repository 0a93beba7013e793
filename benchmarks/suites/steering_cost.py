"""Measures the cost of steering: our engine against itself at 32 rows, in many short rounds."""

from functools import partial

from benchmarks.bench import Bench, Task, metric_of
from benchmarks.contenders.registry import ENGINE
from benchmarks.suites.throughput import steered
from benchmarks.workload import KINDS

ROWS = 32


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
    results = bench.run_rounds(tasks, profile.close_rounds)
    bench.record(
        {(contender, f"{kind}, close"): found for (contender, kind), found in results.items()},
        rows=ROWS,
        prompt=profile.short_prompt,
    )
    unsteered = metric_of(results, ENGINE, "unsteered")
    for kind in ("one layer", "distinct plans", "mixed operations"):
        bench.compare(kind, metric_of(results, ENGINE, kind), unsteered)
