"""Measures the first token of a long prompt against a plain forward pass over the same prompt."""

from functools import partial

from benchmarks.bench import Bench, Result, Task, metric_of
from benchmarks.contenders.process import Contender
from benchmarks.contenders.registry import ENGINE, PLAIN
from benchmarks.workload import prompts, steering


def run(bench: Bench) -> None:
    """Measures with steering at all layers, and without."""
    engine, plain = bench.contender(ENGINE), bench.contender(PLAIN)
    if engine is None or plain is None:
        return
    length = bench.profile.long_prompt
    bench.log(f"first token of a prompt of {length}")
    tasks: dict[tuple[str, str], Task] = {
        (ENGINE, "unsteered"): partial(_first, engine, "unsteered", length),
        (ENGINE, "distinct plans"): partial(_first, engine, "distinct plans", length),
        (PLAIN, "forward pass"): partial(_forward, plain, length),
    }
    results = bench.run_rounds(tasks, bench.profile.close_rounds)
    bench.record(
        {(contender, f"{work}, first token"): found for (contender, work), found in results.items()},
        rows=1,
        prompt=length,
    )
    forward = metric_of(results, PLAIN, "forward pass", "first_token")
    bench.compare("first token", metric_of(results, ENGINE, "distinct plans", "first_token"), forward)
    bench.compare("first token unsteered", metric_of(results, ENGINE, "unsteered", "first_token"), forward)


def _first(engine: Contender, kind: str, length: int, seed: int) -> Result:
    batch = prompts(1, length, f"first {kind} {seed}")
    return engine.request("generate", prompts=batch, new_tokens=1, steering=steering(kind, 1), warm_length=length)


def _forward(plain: Contender, length: int, seed: int) -> Result:
    return plain.request("forward", prompt=prompts(1, length, seed)[0])
