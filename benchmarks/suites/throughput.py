"""Measures requests that arrive together, by number and prompt length, against transformers, linear layers and vLLM."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.bench import Bench, Result, Results, Task, fastest, metric_of, shortest
from benchmarks.contenders.process import Contender
from benchmarks.contenders.registry import ENGINE, LINEARS, PLAIN, VLLM
from benchmarks.workload import TOKENS_PER_WORD, prompts, steering

KINDS = ("unsteered", "distinct plans", "mixed operations")
VERY_KINDS = ("unsteered", "distinct plans")
LONG_PASSES = 1
DENSE_FORMS = ("bfloat16", "float32")
ONE_AT_A_TIME = 32
"""Size at which one configuration at a time is measured; its speed does not depend on it."""


def run(bench: Bench) -> None:
    """Measures short, long and very long prompts at every size."""
    profile = bench.profile
    for rows in sorted({*profile.sizes, *profile.static_sizes}):
        _short(bench, rows)
    for rows in profile.long_sizes:
        _long(bench, rows, profile.long_prompt, KINDS, profile.long_rounds)
    for rows in profile.very_long_sizes:
        length = int(profile.very_long_words * TOKENS_PER_WORD)
        results = _long(bench, rows, length, VERY_KINDS, profile.rounds)
        vllm = fastest([metric_of(results, name, "unsteered") for name in VLLM])
        bench.compare(f"vllm long {rows}", metric_of(results, ENGINE, "distinct plans"), vllm)
        if rows == 1:
            ours = metric_of(results, ENGINE, "distinct plans", "first_token")
            first = shortest([metric_of(results, name, "unsteered", "first_token") for name in VLLM])
            bench.compare("vllm long first", ours, first)
            bench.compare("long products", ours, metric_of(results, LINEARS, "one pass", "seconds"))


def _long(bench: Bench, rows: int, length: int, kinds: tuple[str, ...], rounds: int) -> Results:
    bench.log(f"{rows} requests, prompts of {length}")
    tasks = engine_tasks(bench, rows, length, kinds) | vllm_tasks(bench, rows, length)
    if rows == 1 and (linears := bench.contender(LINEARS)):
        tasks[LINEARS, "one pass"] = partial(_passes, linears, length, LONG_PASSES)
    results = bench.run_rounds(tasks, rounds)
    bench.record(results, rows=rows, prompt=length)
    return results


def _short(bench: Bench, rows: int) -> None:
    profile = bench.profile
    length = profile.short_prompt
    bench.log(f"{rows} requests, prompts of {length}")
    tasks: dict[tuple[str, str], Task] = {}
    if rows in profile.sizes:
        tasks |= engine_tasks(bench, rows, length, KINDS) | vllm_tasks(bench, rows, length)
        if linears := bench.contender(LINEARS):
            tasks[LINEARS, "one pass"] = partial(_passes, linears, rows, profile.linear_passes)
    if plain := bench.contender(PLAIN):
        if rows in profile.static_sizes:
            tasks[PLAIN, "static batch"] = partial(_static, plain, rows, length, profile.new_tokens)
        if rows == ONE_AT_A_TIME:
            count = profile.one_at_a_time
            tasks[PLAIN, "one configuration at a time"] = partial(_hooked, plain, count, length, profile.new_tokens)
    results = bench.run_rounds(tasks, profile.rounds)
    bench.record(results, rows=rows, prompt=length)
    ours = metric_of(results, ENGINE, "distinct plans")
    vllm = fastest([metric_of(results, name, "unsteered") for name in VLLM])
    if rows in (1, 8, 32):
        bench.compare(f"vllm {rows}", ours, vllm)
        decoding = metric_of(results, ENGINE, "distinct plans", "decode_per_second")
        bench.compare(f"linears {rows}", decoding, metric_of(results, LINEARS, "one pass"))
    if rows == 1:
        limit = memory_limit(results, bench.facts.get(ENGINE, {}))
        bench.compare("memory limit", metric_of(results, ENGINE, "distinct plans", "decode_per_second"), limit)
        bench.compare("generate", ours, metric_of(results, PLAIN, "static batch"))
    if rows == 32:
        bench.compare("vllm unsteered 32", metric_of(results, ENGINE, "unsteered"), vllm)
        bench.compare("one at a time", ours, metric_of(results, PLAIN, "one configuration at a time"))


def memory_limit(results: Results, engine: Mapping[str, Any]) -> list[float] | None:
    """Returns the tokens per second of each round if a token took as long as reading the weights from memory once, in the form in which the
    engine reads them at one row; None if that was not measured. engine: its facts.

    A model is taken to have all linear layers in blocks, or none, as the measured ones have.
    """
    read = metric_of(results, LINEARS, "one pass", "bytes_per_second")
    dense = metric_of(results, LINEARS, "one pass", "weight_bytes")
    if not read or not dense:
        return None
    packed: Mapping[str, int] = engine.get("weight_bytes", {})
    blocks = sum(size for form, size in packed.items() if form not in DENSE_FORMS)
    reads_blocks = bool(blocks) and "blocks up to 0 rows" not in engine["kernels"]
    return [speed / (blocks if reads_blocks else weights) for speed, weights in zip(read, dense, strict=True)]


def engine_tasks(
    bench: Bench, rows: int, length: int, kinds: tuple[str, ...], part: str = "throughput"
) -> dict[tuple[str, str], Task]:
    """Returns the tasks of our engine with each kind of steering; none where it is absent. part: whose prompts no other part has."""
    engine = bench.contender(ENGINE)
    if engine is None:
        return {}
    return {
        (ENGINE, kind): partial(steered, engine, part, kind, rows, length, bench.profile.new_tokens) for kind in kinds
    }


def vllm_tasks(bench: Bench, rows: int, length: int) -> dict[tuple[str, str], Task]:
    """Returns the tasks of vLLM with each of its settings; none where it is absent."""
    found = {name: vllm for name in VLLM if (vllm := bench.contender(name))}
    return {
        (name, "unsteered"): partial(_static, vllm, rows, length, bench.profile.new_tokens)
        for name, vllm in found.items()
    }


def steered(engine: Contender, part: str, kind: str, rows: int, length: int, new_tokens: int, seed: int) -> Result:
    """Runs our engine on prompts that no other run uses."""
    batch = prompts(rows, length, f"{part} {kind} {seed}")
    return engine.request("generate", prompts=batch, new_tokens=new_tokens, steering=steering(kind, rows))


def _static(contender: Contender, rows: int, length: int, new_tokens: int, seed: int) -> Result:
    return contender.request("generate", prompts=prompts(rows, length, seed), new_tokens=new_tokens)


def _hooked(plain: Contender, count: int, length: int, new_tokens: int, seed: int) -> Result:
    return plain.request("hooked", prompts=prompts(count, length, seed), new_tokens=new_tokens, seed=seed)


def _passes(linears: Contender, rows: int, count: int, _seed: int) -> Result:
    return linears.request("passes", rows=rows, count=count)
