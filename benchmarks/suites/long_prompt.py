"""Measures the gaps in running streams when a long prompt arrives."""

from functools import partial
from statistics import median

from benchmarks.bench import Bench, Result, Task, metric_of
from benchmarks.contenders.process import Contender
from benchmarks.contenders.registry import ENGINE
from benchmarks.stream_timing import percentile
from benchmarks.workload import prompts, steering

KIND = "distinct plans"


def run(bench: Bench) -> None:
    """Reports the gaps between tokens of all streams."""
    engine = bench.contender(ENGINE)
    if engine is None:
        return
    bench.log(f"{bench.profile.streams} streams, a prompt of {bench.profile.arriving_prompt} arrives")
    tasks: dict[tuple[str, str], Task] = {(ENGINE, "long prompt arrives"): partial(_with_long_prompt, bench, engine)}
    results = bench.run_rounds(tasks, bench.profile.rounds)
    bench.record(results, rows=bench.profile.streams, prompt=bench.profile.arriving_prompt)
    worst = metric_of(results, ENGINE, "long prompt arrives", "gap_p99")
    bench.compare("gap", worst, metric_of(results, ENGINE, "long prompt arrives", "gap_median"))


def _with_long_prompt(bench: Bench, engine: Contender, seed: int) -> Result:
    profile = bench.profile
    result = engine.request(
        "long_prompt",
        prompts=prompts(profile.streams, profile.short_prompt, f"streams {seed}"),
        new_tokens=profile.stream_tokens,
        steering=steering(KIND, profile.streams),
        long=prompts(1, profile.arriving_prompt, f"arriving {seed}")[0],
        after=profile.arrives_after,
    )
    gaps, during, before = result["gaps"], result["gaps_during"], result.pop("gaps_before")
    return {
        **result,
        "gap_median": median(gaps),
        "gap_p99": percentile(gaps, 0.99),
        "gap_p99_during": percentile(during, 0.99) if during else None,
        "gap_median_before": median(before) if before else None,
    }
