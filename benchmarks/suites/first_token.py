"""The first token of a long prompt beside a plain forward pass over the same prompt."""

from functools import partial

from benchmarks.bench import Answer, Bench, Turn, figures_of
from benchmarks.contenders.process import Side
from benchmarks.contenders.registry import ENGINE, PLAIN
from benchmarks.workload import prompts, steering


def run(bench: Bench) -> None:
    """Steered at all layers, and unsteered."""
    engine, plain = bench.side(ENGINE), bench.side(PLAIN)
    if engine is None or plain is None:
        return
    length = bench.effort.long_prompt
    bench.tell(f"first token of a prompt of {length}")
    turns: dict[tuple[str, str], Turn] = {
        (ENGINE, "unsteered"): partial(_first, engine, "unsteered", length),
        (ENGINE, "distinct plans"): partial(_first, engine, "distinct plans", length),
        (PLAIN, "forward pass"): partial(_forward, plain, length),
    }
    answers = bench.take_turns(turns, bench.effort.close_rounds)
    bench.keep(
        {(side, f"{work}, first token"): found for (side, work), found in answers.items()}, rows=1, prompt=length
    )
    forward = figures_of(answers, PLAIN, "forward pass", "first_token")
    bench.compare("first token", figures_of(answers, ENGINE, "distinct plans", "first_token"), forward)
    bench.compare("first token unsteered", figures_of(answers, ENGINE, "unsteered", "first_token"), forward)


def _first(engine: Side, kind: str, length: int, seed: int) -> Answer:
    asked = prompts(1, length, f"first {kind} {seed}")
    return engine.ask("generate", prompts=asked, new_tokens=1, steering=steering(kind, 1), warm_length=length)


def _forward(plain: Side, length: int, seed: int) -> Answer:
    return plain.ask("forward", prompt=prompts(1, length, seed)[0])
