"""What a long prompt that arrives does to the streams that are under way."""

from functools import partial
from statistics import median

from benchmarks.bench import Answer, Bench, Turn, figures_of
from benchmarks.contenders.process import Side
from benchmarks.contenders.registry import ENGINE
from benchmarks.workload import prompts, steering

KIND = "distinct plans"


def run(bench: Bench) -> None:
    """Gaps between tokens of all streams, from their first token to their last."""
    engine = bench.side(ENGINE)
    if engine is None:
        return
    bench.tell(f"{bench.effort.streams} streams, a prompt of {bench.effort.arriving_prompt} arrives")
    turns: dict[tuple[str, str], Turn] = {(ENGINE, "long prompt arrives"): partial(_disturbed, bench, engine)}
    answers = bench.take_turns(turns, bench.effort.rounds)
    bench.keep(answers, rows=bench.effort.streams, prompt=bench.effort.arriving_prompt)
    worst = figures_of(answers, ENGINE, "long prompt arrives", "gap_p99")
    bench.compare("gap", worst, figures_of(answers, ENGINE, "long prompt arrives", "gap_median"))


def _disturbed(bench: Bench, engine: Side, seed: int) -> Answer:
    effort = bench.effort
    answer = engine.ask(
        "long_prompt",
        prompts=prompts(effort.streams, effort.short_prompt, f"streams {seed}"),
        new_tokens=effort.stream_tokens,
        steering=steering(KIND, effort.streams),
        long=prompts(1, effort.arriving_prompt, f"arriving {seed}")[0],
        after=effort.arrives_after,
    )
    gaps, during, before = answer["gaps"], answer["gaps_during"], answer.pop("gaps_before")
    return {
        **answer,
        "gap_median": median(gaps),
        "gap_p99": percentile(gaps, 0.99),
        "gap_p99_during": percentile(during, 0.99) if during else None,
        "gap_median_before": median(before) if before else None,
    }


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
