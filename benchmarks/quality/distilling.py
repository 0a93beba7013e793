"""`python -m benchmarks.quality.distilling`: the effect of a distilled vector beside that of its own instruction, read by another model.

For each instruction the model answers prompts that nothing was fitted on: without it, under it, and with the vector in its place. One
strength for all instructions is chosen on the first CHOOSING of them and on prompts of their own (`--choose`), before any is reported. The
reader is another model: how much likelier it finds an answer under the instruction than without. A run leaves out what the file has.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np

from benchmarks.contenders.open_engine import opened
from benchmarks.contenders.registry import run_as_served
from benchmarks.quality.recording import read_results, write_results
from steering.auroc import auroc
from steering.concepts.described import described
from steering.concepts.loader import load_evaluation_prompts, load_report_prompts
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.lab.controls import UNGUARDED, GivenVectors
from steering.lab.distil import PROMPTS, DistilRequest, distil
from steering.plan.resolve import resolve
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import ConceptVector
from steering.workflows.describe import INSTRUCTION, under
from steering.workflows.generate import Answer, background, seeded
from steering.workflows.measures import estimate, measure_tokens, repetition
from steering.workflows.texts import as_prompts

RESULTS = Path(__file__).parent.parent / "results" / "distilling.json"
CHOSEN = (
    "pirate", "joyful", "gloomy", "angry", "friendly", "sarcastic", "dramatic", "concise", "step-by-step", "poetic",
    "storytelling", "quantitative", "emphatic", "archaic", "legal", "optimistic", "hedging", "asks-back", "sea", "wizard",
)  # fmt: skip
"""Concepts whose positive poles are the instructions."""
EVALUATED = 16
"""Prompts whose answers are reported."""
TRIED = 8
"""Prompts whose answers choose the strength."""
CHOOSING = 4
"""Instructions that choose it."""
SAMPLING = SamplingParams(max_tokens=32, temperature=0.7, seed=1)
STRENGTHS = (1.0, 1.5, 2.0, 2.5)
SURPRISE = 1.25
"""How much more surprising than the answers under the instruction those with the vector may be, as a ratio."""
REPETITION = 0.05
"""How much more repetitive they may be, as a difference."""
Arms: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What is measured of the answers of each arm; `told` are those under the instruction."""


def within(arm: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether the answers of an arm are about as fluent as those under the instruction: SURPRISE times as surprising at most, and hardly
    more repetitive. Broken text must not count as an effect."""
    return bool(arm["surprise"] <= SURPRISE * told["surprise"] and arm["repetition"] <= told["repetition"] + REPETITION)


def reaches(arm: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether an arm has at least the effect of the instruction, with text as fluent."""
    return bool(arm["effect"]["mean"] >= told["effect"]["mean"]) and within(arm, told)


def chosen_strength(trials: Mapping[str, Arms]) -> float:
    """Returns the strength at which most instructions are reached; the lowest of equals. trials: what was measured, by instruction."""
    return max(STRENGTHS, key=lambda one: sum(reaches(arms[_apply(one)], arms["told"]) for arms in trials.values()))


def _apply(strength: float) -> str:
    return f"apply {strength:g}"


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts, and their answers without an instruction, which all instructions are compared with. tokens: see `_tokens`."""

    prompts: Sequence[str]
    plain: Sequence[Answer]
    tokens: Mapping[str, float]


async def asked(engine: Engine, prompts: Sequence[str]) -> Asked:
    """Answers prompts without an instruction."""
    rendered = as_prompts(engine, prompts)
    written = await background(engine, seeded(rendered, SAMPLING))
    return Asked(prompts, written, await _tokens(engine, rendered, written))


def evaluated() -> tuple[str, ...]:
    """Returns the prompts whose answers are reported."""
    return _mixed(load_report_prompts)[:EVALUATED]


def tried() -> tuple[str, ...]:
    """Returns the prompts whose answers choose the strength."""
    return _mixed(load_evaluation_prompts)[:TRIED]


def _mixed(load: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(chain.from_iterable(zip(load("sentiment"), load("formality"), strict=True)))


async def compared(
    engine: Engine, reader: Engine, name: str, asked: Asked, strengths: Sequence[float]
) -> dict[str, Any]:
    """Returns the effects of one instruction and of its vector at each strength, as the reader scores them."""
    instruction = INSTRUCTION.format(pole=described()[name].positive)
    # nothing is held out, because all is measured on other prompts
    vector = await distil(engine, DistilRequest(name, instruction, max_tokens=SAMPLING.max_tokens, holdout=0.0))
    plans = {one: await _plan(engine, vector, one) for one in strengths}
    encode, prompt = engine.tokenizer.encode, asked.prompts[0]
    saved = len(encode(under(engine, instruction, prompt))) - len(encode(as_prompts(engine, [prompt])[0]))
    arms = await _arms(engine, reader, instruction, asked, plans)
    return {"instruction": instruction, "tokens_saved": saved, "arms": arms}


async def _arms(
    engine: Engine, reader: Engine, instruction: str, asked: Asked, plans: Mapping[float, SteeringPlan]
) -> dict[str, dict[str, Any]]:
    """Returns what is measured of the answers without the instruction, under it, and with the vector at each strength."""
    prompts: Sequence[Prompt] = as_prompts(engine, asked.prompts)
    told: Sequence[Prompt] = [under(engine, instruction, one) for one in asked.prompts]
    planned = {"told": (told, UNSTEERED)} | {_apply(one): (prompts, plan) for one, plan in plans.items()}
    requests = [replace(one, plan=plan) for asked_so, plan in planned.values() for one in seeded(asked_so, SAMPLING)]
    answers = await background(engine, requests)  # of all arms in one batch
    count = len(asked.prompts)
    written = {"plain": asked.plain} | {
        arm: answers[number * count : (number + 1) * count] for number, arm in enumerate(planned)
    }
    scores = {arm: await _scores(reader, instruction, asked.prompts, of_arm) for arm, of_arm in written.items()}
    rows: dict[str, dict[str, Any]] = {
        arm: dict(asked.tokens) if arm == "plain" else await _tokens(engine, prompts, of_arm)
        for arm, of_arm in written.items()
    }
    for arm, values in scores.items():
        effects = [after - before for after, before in zip(values, scores["plain"], strict=True)]
        missing = [value - base for value, base in zip(values, scores["told"], strict=True)]
        rows[arm] |= {"effect": asdict(estimate(effects)), "against_told": asdict(estimate(missing))}
        rows[arm] |= {"auroc": float(auroc(np.array(values), np.array(scores["plain"])))}
    return rows


async def _plan(engine: Engine, vector: ConceptVector, strength: float) -> SteeringPlan:
    item = InterventionSpec(vector=vector.name, operation="apply", strength=strength)
    spec = SteeringSpec(interventions=(item,))
    return await resolve(spec, GivenVectors((vector,)), engine.info, guard=UNGUARDED)


async def _scores(reader: Engine, instruction: str, prompts: Sequence[str], written: Sequence[Answer]) -> list[float]:
    """Returns how much likelier the reader finds each answer under the instruction than without it, in nats a token."""
    answers = [reader.tokenizer.encode(one.text.strip() or ".") for one in written]
    told = await _likelihoods(reader, [under(reader, instruction, one) for one in prompts], answers)
    plain = await _likelihoods(reader, as_prompts(reader, prompts), answers)
    return [one - other for one, other in zip(told, plain, strict=True)]


async def _likelihoods(engine: Engine, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]]) -> list[float]:
    """Returns the mean log-likelihood of the tokens of each answer, which has some."""

    async def likelihood(prompt: Prompt, answer: tuple[int, ...]) -> float:
        measured = await measure_tokens(engine, engine.tokenizer.encode(prompt), answer, UNSTEERED)
        assert measured is not None, "answers are short"
        return -fmean(measured.surprise)

    return list(await asyncio.gather(*map(likelihood, prompts, answers)))


async def _tokens(engine: Engine, prompts: Sequence[Prompt], written: Sequence[Answer]) -> dict[str, float]:
    """Returns how surprising answers are to the model without instruction and vector, in nats a token, and how repetitive."""
    kept = [(prompt, one) for prompt, one in zip(prompts, written, strict=True) if one.tokens]
    likely = await _likelihoods(engine, [prompt for prompt, _ in kept], [one.tokens for _, one in kept])
    return {"surprise": -fmean(likely), "repetition": fmean(repetition(one.tokens) for one in written)}


async def measure(path: Path, names: Sequence[str], model: str, second: str, seconds: float, *, choose: bool) -> None:
    """Measures until the time is over, and adds each result to the file as it comes. choose: what chooses the strength."""
    began = time.monotonic()
    async with opened(model, second) as (engine, reader):
        part = "choosing" if choose else "instructions"
        before = read_results(path).get(engine.info.name, {})
        strengths = STRENGTHS if choose else (chosen_strength(arms_of(before, "choosing")),)
        about = {"reader": reader.info.name, "dtype": engine.info.dtype, "prompts": EVALUATED, "fitted": PROMPTS}
        about |= {"tried": TRIED, "max_tokens": SAMPLING.max_tokens}
        prompts = await asked(engine, tried() if choose else evaluated())
        for name in names:
            if name in before.get(part, {}) or time.monotonic() - began > seconds:
                continue
            at = time.monotonic()
            found = await compared(engine, reader, name, prompts, strengths)
            _add(path, engine.info.name, about, part, name, found)
            print(f"{name}: {time.monotonic() - at:.0f} s", flush=True)


def arms_of(found: Mapping[str, Any], part: str) -> dict[str, Arms]:
    """Returns the arms of each instruction of a part of a model's results."""
    return {name: one["arms"] for name, one in found.get(part, {}).items()}


def _add(path: Path, model: str, about: Mapping[str, Any], part: str, name: str, found: Mapping[str, Any]) -> None:
    results = read_results(path)
    before = results.get(model, {})
    added = {part: {**before.get(part, {}), name: found}, "date": datetime.now(UTC).date().isoformat()}
    write_results(path, results | {model: {**before, **about, **added}})


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.distilling", description=__doc__)
    parser.add_argument("--model", required=True, help="a name, folder or .gguf file")
    parser.add_argument("--reader", required=True, help="the other model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--choose", action="store_true", help="measure what chooses the strength")
    parser.add_argument("--seconds", type=float, default=3600.0, help="no instruction is begun after so long")
    chosen = parser.parse_args()
    names = CHOSEN[:CHOOSING] if chosen.choose else CHOSEN
    asyncio.run(measure(chosen.output, names, chosen.model, chosen.reader, chosen.seconds, choose=chosen.choose))


if __name__ == "__main__":
    run_as_served("benchmarks.quality.distilling")
    main()
