"""Requests that come together, at several sizes and prompt lengths: ours, plain transformers, the floor, and vLLM."""

from functools import partial

from benchmarks.bench import Answer, Bench, Turn, figures_of
from benchmarks.contenders.process import Side
from benchmarks.contenders.registry import ENGINE, LINEARS, PLAIN, VLLM
from benchmarks.workload import KINDS, prompts, steering

LONG_KINDS = ("unsteered", "distinct plans", "mixed operations")
ONE_AT_A_TIME = 32
"""Size at which the one-configuration-at-a-time way is measured; its speed does not depend on it."""


def run(bench: Bench) -> None:
    """Every size with the short prompt, then with the long one."""
    effort = bench.effort
    for rows in sorted({*effort.sizes, *effort.static_sizes}):
        _short(bench, rows)
    for rows in effort.long_sizes:
        bench.tell(f"{rows} requests, prompts of {effort.long_prompt}")
        turns = _ours(bench, rows, effort.long_prompt, LONG_KINDS) | _vllm(bench, rows, effort.long_prompt)
        bench.keep(bench.take_turns(turns, effort.long_rounds), rows=rows, prompt=effort.long_prompt)


def _short(bench: Bench, rows: int) -> None:
    effort = bench.effort
    length = effort.short_prompt
    bench.tell(f"{rows} requests, prompts of {length}")
    turns: dict[tuple[str, str], Turn] = {}
    if rows in effort.sizes:
        turns |= _ours(bench, rows, length, KINDS) | _vllm(bench, rows, length)
        if floor := bench.side(LINEARS):
            turns[LINEARS, "one pass"] = partial(_passes, floor, rows, effort.linear_passes)
    if plain := bench.side(PLAIN):
        if rows in effort.static_sizes:
            turns[PLAIN, "static batch"] = partial(_static, plain, rows, length, effort.new_tokens)
        if rows == ONE_AT_A_TIME:
            count = effort.one_at_a_time
            turns[PLAIN, "one configuration at a time"] = partial(_hooked, plain, count, length, effort.new_tokens)
    answers = bench.take_turns(turns, effort.rounds)
    bench.keep(answers, rows=rows, prompt=length)
    ours = figures_of(answers, ENGINE, "distinct plans")
    if rows in (1, 8, 32):
        bench.compare(f"vllm {rows}", ours, figures_of(answers, VLLM, "unsteered"))
        decoding = figures_of(answers, ENGINE, "distinct plans", "decode_per_second")
        bench.compare(f"linears {rows}", decoding, figures_of(answers, LINEARS, "one pass"))
    if rows == 1:
        bench.compare("generate", ours, figures_of(answers, PLAIN, "static batch"))
    if rows == 32:
        unsteered = figures_of(answers, ENGINE, "unsteered")
        bench.compare("vllm unsteered 32", unsteered, figures_of(answers, VLLM, "unsteered"))
        bench.compare("one at a time", ours, figures_of(answers, PLAIN, "one configuration at a time"))


def _ours(bench: Bench, rows: int, length: int, kinds: tuple[str, ...]) -> dict[tuple[str, str], Turn]:
    engine = bench.side(ENGINE)
    if engine is None:
        return {}
    return {
        (ENGINE, kind): partial(steered, engine, "throughput", kind, rows, length, bench.effort.new_tokens)
        for kind in kinds
    }


def _vllm(bench: Bench, rows: int, length: int) -> dict[tuple[str, str], Turn]:
    vllm = bench.side(VLLM)
    return {(VLLM, "unsteered"): partial(_static, vllm, rows, length, bench.effort.new_tokens)} if vllm else {}


def steered(engine: Side, part: str, kind: str, rows: int, length: int, new_tokens: int, seed: int) -> Answer:
    """One turn of our engine, on prompts that no other turn has."""
    asked = prompts(rows, length, f"{part} {kind} {seed}")
    return engine.ask("generate", prompts=asked, new_tokens=new_tokens, steering=steering(kind, rows))


def _static(side: Side, rows: int, length: int, new_tokens: int, seed: int) -> Answer:
    return side.ask("generate", prompts=prompts(rows, length, seed), new_tokens=new_tokens)


def _hooked(plain: Side, count: int, length: int, new_tokens: int, seed: int) -> Answer:
    return plain.ask("hooked", prompts=prompts(count, length, seed), new_tokens=new_tokens, seed=seed)


def _passes(floor: Side, rows: int, count: int, _seed: int) -> Answer:
    return floor.ask("passes", rows=rows, count=count)
