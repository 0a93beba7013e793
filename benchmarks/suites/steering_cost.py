"""What steering costs: our engine against itself at 32 rows, in many short rounds."""

from functools import partial

from benchmarks.bench import Bench, Turn, figures_of
from benchmarks.contenders.registry import ENGINE
from benchmarks.suites.throughput import steered
from benchmarks.workload import KINDS

ROWS = 32


def run(bench: Bench) -> None:
    """Every kind of steering beside none."""
    engine = bench.side(ENGINE)
    if engine is None:
        return
    effort = bench.effort
    bench.tell(f"cost of steering at {ROWS} rows")
    turns: dict[tuple[str, str], Turn] = {
        (ENGINE, kind): partial(steered, engine, "cost", kind, ROWS, effort.short_prompt, effort.new_tokens)
        for kind in KINDS
    }
    answers = bench.take_turns(turns, effort.close_rounds)
    bench.keep(
        {(side, f"{kind}, close"): found for (side, kind), found in answers.items()},
        rows=ROWS,
        prompt=effort.short_prompt,
    )
    unsteered = figures_of(answers, ENGINE, "unsteered")
    for kind in ("one layer", "distinct plans", "mixed operations"):
        bench.compare(kind, figures_of(answers, ENGINE, kind), unsteered)
