"""Measures a mixed load: requests of different lengths that arrive over time, against vLLM with the same requests."""

from functools import partial

from benchmarks.bench import Bench, Result, Task, fastest, metric_of
from benchmarks.contenders.process import Contender
from benchmarks.contenders.registry import ENGINE, VLLM
from benchmarks.workload import mixed_requests, steering

KINDS = ("unsteered", "distinct plans")
NEW = "mixed load"


def run(bench: Bench) -> None:
    """Reports tokens/s, the first token (median and p99) and the gaps between tokens (p99)."""
    engine = bench.contender(ENGINE)
    if engine is None:
        return
    profile = bench.profile
    bench.log(f"{profile.mixed_requests} requests, {profile.mixed_rate:g} per second")
    tasks: dict[tuple[str, str], Task] = {
        (ENGINE, f"{kind}, {NEW}"): partial(_ours, bench, engine, kind) for kind in KINDS
    }
    for name in VLLM:
        if vllm := bench.contender(name):
            tasks[name, f"unsteered, {NEW}"] = partial(_vllm, bench, vllm)
    results = bench.run_rounds(tasks, profile.rounds)
    bench.record(results, rows=profile.mixed_requests, prompt=0)
    vllm_speed = fastest([metric_of(results, name, f"unsteered, {NEW}") for name in VLLM])
    bench.compare("mixed load", metric_of(results, ENGINE, f"distinct plans, {NEW}"), vllm_speed)


def _ours(bench: Bench, engine: Contender, kind: str, seed: int) -> Result:
    profile = bench.profile
    requests = mixed_requests(profile, seed)
    return engine.request("mixed_load", requests=requests, steering=steering(kind, profile.mixed_requests))


def _vllm(bench: Bench, vllm: Contender, seed: int) -> Result:
    return vllm.request("mixed_load", requests=mixed_requests(bench.profile, seed))
