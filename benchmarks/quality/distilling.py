"""`python -m benchmarks.quality.distilling`: the effect of a distilled vector beside that of its own instruction, read by another model.

For each instruction the model answers prompts that nothing was fitted on: without it, under it, and with the vector in its place. The
reader is another model: how much likelier it finds an answer under the instruction than without. A run leaves out what the file has.
"""

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.contenders.open_engine import opened
from benchmarks.contenders.registry import run_as_served
from benchmarks.quality.recording import read_results, write_results
from steering.auroc import auroc
from steering.concepts.described import described
from steering.concepts.loader import load_evaluation_prompts, load_neutral
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.lab.controls import UNGUARDED, GivenVectors
from steering.lab.distil import DistilRequest, distil
from steering.plan.resolve import resolve
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from steering.workflows.describe import INSTRUCTION, under
from steering.workflows.generate import Answer, background, seeded
from steering.workflows.measures import estimate, measure_tokens, ratio, repetition
from steering.workflows.texts import as_prompts

RESULTS = Path(__file__).parent.parent / "results" / "distilling.json"
CHOSEN = (
    "pirate", "joyful", "gloomy", "angry", "friendly", "sarcastic", "dramatic", "concise", "step-by-step", "poetic",
    "storytelling", "quantitative", "emphatic", "archaic", "legal", "optimistic", "hedging", "asks-back", "sea", "wizard",
)  # fmt: skip
"""Concepts whose positive poles are the instructions."""
FITTED = 32
"""Neutral prompts that the vector is distilled on."""
EVALUATED = 16
"""Prompts whose answers are compared."""
SAMPLING = SamplingParams(max_tokens=32, temperature=0.7, seed=1)
STRENGTHS = (1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Plain:
    """The answers without an instruction, which all instructions are compared with. tokens: see `_tokens`."""

    answers: Sequence[Answer]
    tokens: Mapping[str, float]


async def plain_answers(engine: Engine) -> Plain:
    """Returns the answers without an instruction."""
    written = await background(engine, seeded(as_prompts(engine, asked()), SAMPLING))
    return Plain(written, await _tokens(engine, written))


def asked() -> tuple[str, ...]:
    """Returns the prompts whose answers are compared."""
    return (*load_evaluation_prompts("sentiment"), *load_evaluation_prompts("formality"))[:EVALUATED]


async def compared(engine: Engine, reader: Engine, name: str, plain: Plain) -> dict[str, Any]:
    """Returns the effects of one instruction, of its vector at STRENGTHS, and of adding its mean change, as the reader scores them."""
    instruction = INSTRUCTION.format(pole=described()[name].positive)
    prompts: Sequence[Prompt] = as_prompts(engine, asked())
    told: Sequence[Prompt] = [under(engine, instruction, one) for one in asked()]
    request = DistilRequest(name, instruction, load_neutral()[:FITTED], max_tokens=SAMPLING.max_tokens)
    vector = await distil(engine, request)
    arms: dict[str, tuple[Sequence[Prompt], SteeringPlan]] = {
        "told": (told, UNSTEERED),
        **{f"apply {strength:g}": (prompts, await _plan(engine, vector, "apply", strength)) for strength in STRENGTHS},
        "add": (prompts, await _plan(engine, vector, "add", 1 / len(vector.layers))),
    }
    requests = [replace(one, plan=plan) for asked_so, plan in arms.values() for one in seeded(asked_so, SAMPLING)]
    answers = await background(engine, requests)  # of all arms in one batch
    written = {"plain": plain.answers} | {
        arm: answers[number * EVALUATED : (number + 1) * EVALUATED] for number, arm in enumerate(arms)
    }
    scores = {arm: await _scores(reader, instruction, of_arm) for arm, of_arm in written.items()}
    rows: dict[str, dict[str, Any]] = {
        arm: dict(plain.tokens) if arm == "plain" else await _tokens(engine, of_arm) for arm, of_arm in written.items()
    }
    effects = {
        arm: [after - before for after, before in zip(values, scores["plain"], strict=True)]
        for arm, values in scores.items()
        if arm != "plain"
    }
    for arm, values in effects.items():
        missing = [value - base for value, base in zip(values, effects["told"], strict=True)]
        rows[arm] |= {"effect": asdict(estimate(values)), "against_told": asdict(estimate(missing))}
        rows[arm] |= {"share": asdict(ratio(values, effects["told"]))} if arm != "told" else {}
    encode = engine.tokenizer.encode
    return {
        "instruction": instruction,
        "reader_auroc": float(auroc(*(np.array(scores[arm]) for arm in ("told", "plain")))),
        "tokens_saved": len(encode(told[0])) - len(encode(prompts[0])),
        "arms": rows,
    }


async def _plan(engine: Engine, vector: ConceptVector, operation: str, strength: float) -> SteeringPlan:
    item = {"vector": vector.name, "operation": operation, "strength": strength, "layers": list(vector.layers)}
    spec = SteeringSpec.model_validate({"interventions": [{**item, "scope": {"tokens": "generated"}}]})
    return await resolve(spec, GivenVectors((vector,)), engine.info, guard=UNGUARDED)


async def _scores(reader: Engine, instruction: str, written: Sequence[Answer]) -> list[float]:
    """Returns how much likelier the reader finds each answer under the instruction than without it, in nats a token."""
    answers = [reader.tokenizer.encode(one.text.strip() or ".") for one in written]
    told = await _likelihoods(reader, [under(reader, instruction, one) for one in asked()], answers)
    plain = await _likelihoods(reader, as_prompts(reader, asked()), answers)
    return [one - other for one, other in zip(told, plain, strict=True)]


async def _likelihoods(engine: Engine, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]]) -> list[float]:
    """Returns the mean log-likelihood of the tokens of each answer, which has some."""
    found: list[float] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        measured = await measure_tokens(engine, engine.tokenizer.encode(prompt), answer, UNSTEERED)
        assert measured is not None, "answers are short"
        found.append(-fmean(measured.surprise))
    return found


async def _tokens(engine: Engine, written: Sequence[Answer]) -> dict[str, float]:
    """Returns how surprising answers are to the model without instruction and vector, in nats a token, and how repetitive."""
    kept = [(prompt, one) for prompt, one in zip(as_prompts(engine, asked()), written, strict=True) if one.tokens]
    likely = await _likelihoods(engine, [prompt for prompt, _ in kept], [one.tokens for _, one in kept])
    return {"surprise": -fmean(likely), "repetition": fmean(repetition(one.tokens) for one in written)}


async def measure(path: Path, names: Sequence[str], model: str, second: str, seconds: float) -> None:
    """Measures until the time is over, and adds each result to the file as it comes."""
    began = time.monotonic()
    async with opened(model, second) as (engine, reader):
        about = {"reader": reader.info.name, "dtype": engine.info.dtype, "prompts": EVALUATED, "fitted": FITTED}
        about |= {"max_tokens": SAMPLING.max_tokens}
        plain = await plain_answers(engine)
        for name in names:
            if name in _measured(path, engine.info.name) or time.monotonic() - began > seconds:
                continue
            at = time.monotonic()
            _add(path, engine.info.name, about, name, await compared(engine, reader, name, plain))
            print(f"{name}: {time.monotonic() - at:.0f} s", flush=True)


def _measured(path: Path, model: str) -> Mapping[str, Any]:
    """Returns the instructions of a model that the file has."""
    found: Mapping[str, Any] = read_results(path).get(model, {}).get("instructions", {})
    return found


def _add(path: Path, model: str, about: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> None:
    instructions = {**_measured(path, model), name: found}
    results = read_results(path) | {
        model: {**about, "date": datetime.now(UTC).date().isoformat(), "instructions": instructions}
    }
    write_results(path, results)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.distilling", description=__doc__)
    parser.add_argument("--model", required=True, help="a name, folder or .gguf file")
    parser.add_argument("--reader", required=True, help="the other model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--concepts", nargs="+", choices=list(described()), default=list(CHOSEN), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=3600.0, help="no instruction is begun after so long")
    chosen = parser.parse_args()
    asyncio.run(measure(chosen.output, chosen.concepts, chosen.model, chosen.reader, chosen.seconds))


if __name__ == "__main__":
    run_as_served("benchmarks.quality.distilling")
    main()
