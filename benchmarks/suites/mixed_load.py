"""Measures a mixed load: requests of different lengths that arrive over time, against vLLM with the same requests."""

from functools import partial

from benchmarks.bench import Bench, Result, Results, Task, fastest, metric_of, shortest
from benchmarks.contenders.process import Contender
from benchmarks.contenders.registry import ENGINE, VLLM
from benchmarks.workload import mixed_requests, steering

KINDS = ("unsteered", "distinct plans")


def run(bench: Bench) -> None:
    """Reports tokens/s, the first token (median and p99) and the gaps between tokens (p99) at both rates.

    Where a server keeps up with the arrivals, they bound the ratio of tokens/s: no server ends before the last request arrives. So
    what the arrivals offer is compared with vLLM too, and the second rate saturates both.
    """
    engine = bench.contender(ENGINE)
    if engine is None:
        return
    for key, rate in zip(("mixed load", "saturated"), bench.profile.mixed_rates, strict=True):
        _run_at(bench, engine, key, rate)


def _run_at(bench: Bench, engine: Contender, key: str, rate: float) -> None:
    profile, load = bench.profile, f"mixed load, {rate:g} per second"
    bench.log(f"{profile.mixed_requests} requests, {rate:g} per second")
    tasks: dict[tuple[str, str], Task] = {
        (ENGINE, f"{kind}, {load}"): partial(_ours, bench, engine, kind, rate) for kind in KINDS
    }
    for name in VLLM:
        if vllm := bench.contender(name):
            tasks[name, f"unsteered, {load}"] = partial(_vllm, bench, vllm, rate)
    results = bench.run_rounds(tasks, profile.rounds)
    bench.record(results, rows=profile.mixed_requests, prompt=0)
    _compare(bench, results, key, load)


def _compare(bench: Bench, results: Results, key: str, load: str) -> None:
    ours = partial(metric_of, results, ENGINE, f"distinct plans, {load}")
    vllm_speed = fastest([metric_of(results, name, f"unsteered, {load}") for name in VLLM])
    bench.compare(key, ours(), vllm_speed)
    bench.compare(f"{key} offered", ours("offered_per_second"), vllm_speed)
    for suffix, metric in (("first", "first_token"), ("first p99", "first_token_p99")):
        vllm_time = shortest([metric_of(results, name, f"unsteered, {load}", metric) for name in VLLM])
        bench.compare(f"{key} {suffix}", ours(metric), vllm_time)


def _ours(bench: Bench, engine: Contender, kind: str, rate: float, seed: int) -> Result:
    profile = bench.profile
    requests = mixed_requests(profile, rate, seed)
    return engine.request("mixed_load", requests=requests, steering=steering(kind, profile.mixed_requests))


def _vllm(bench: Bench, vllm: Contender, rate: float, seed: int) -> Result:
    return vllm.request("mixed_load", requests=mixed_requests(bench.profile, rate, seed))
