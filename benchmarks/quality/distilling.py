"""`python -m benchmarks.quality.distilling`: the effect of a distilled vector beside that of its own instruction, read by another model.

For each instruction the model answers prompts that nothing was fitted on: without it, under it, and with the vector in its place. The
reader is another model, which learns from other answers what the instruction changes. A run leaves out what the file has.
"""

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.contenders.open_engine import opened
from benchmarks.quality.recording import read_results, write_results
from steering.concepts.described import described
from steering.concepts.loader import load_evaluation_prompts, load_neutral
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.lab.controls import UNGUARDED, GivenVectors
from steering.lab.distil import DistilRequest, distil
from steering.pairs import ChatMessage, ContrastivePair, PairSet
from steering.plan.resolve import resolve
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from steering.workflows.describe import INSTRUCTION, under
from steering.workflows.extract import ExtractionRequest, extract, tried_layers
from steering.workflows.generate import Answer, background, seeded
from steering.workflows.measures import estimate, measure_tokens, ratio, repetition
from steering.workflows.readout import read_each
from steering.workflows.texts import conversation

RESULTS = Path(__file__).parent.parent / "results" / "distilling.json"
CHOSEN = (
    "pirate", "joyful", "gloomy", "angry", "friendly", "sarcastic", "dramatic", "concise", "step-by-step", "poetic",
    "storytelling", "quantitative", "emphatic", "archaic", "legal", "optimistic", "hedging", "asks-back", "sea", "wizard",
)  # fmt: skip
"""Concepts whose positive poles are the instructions."""
FITTED = 32
"""Neutral prompts that the vector is distilled on and the reader learns from."""
EVALUATED = 16
"""Prompts whose answers are compared."""
SAMPLING = SamplingParams(max_tokens=32, temperature=0.7, seed=1)
STRENGTHS = (1.0, 2.0)


async def compared(engine: Engine, reader: Engine, name: str) -> dict[str, Any]:
    """Returns the effects of one instruction, of its vector at STRENGTHS, and of adding its mean change, as the reader scores them."""
    instruction = INSTRUCTION.format(pole=described()[name].positive)
    fitted = load_neutral()[:FITTED]
    vector = await distil(engine, DistilRequest(name, instruction, fitted, max_tokens=SAMPLING.max_tokens))
    direction = await _reader_of(engine, reader, instruction, fitted)
    asked = (*load_evaluation_prompts("sentiment"), *load_evaluation_prompts("formality"))[:EVALUATED]
    plain: list[Prompt] = [(ChatMessage("user", one),) for one in asked]
    told: list[Prompt] = [under(engine, instruction, one) for one in asked]
    arms: dict[str, tuple[Sequence[Prompt], SteeringPlan]] = {
        "plain": (plain, UNSTEERED),
        "told": (told, UNSTEERED),
        **{f"apply {strength:g}": (plain, await _plan(engine, vector, "apply", strength)) for strength in STRENGTHS},
        "add": (plain, await _plan(engine, vector, "add", 1 / len(vector.layers))),
    }
    scores, rows = dict[str, list[float]](), dict[str, dict[str, Any]]()
    for arm, (prompts, plan) in arms.items():
        written = await background(engine, [replace(one, plan=plan) for one in seeded(prompts, SAMPLING)])
        scores[arm] = await _scores(reader, direction, asked, written)
        rows[arm] = {
            **await _tokens(engine, plain, written, plan),
            "repetition": fmean(repetition(one.tokens) for one in written),
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
    assert direction.quality is not None
    return {
        "instruction": instruction,
        "reader_auroc": direction.quality.auroc,
        "tokens_saved": len(encode(told[0])) - len(encode(plain[0])),
        "arms": rows,
    }


async def _plan(engine: Engine, vector: ConceptVector, operation: str, strength: float) -> SteeringPlan:
    item = {"vector": vector.name, "operation": operation, "strength": strength, "layers": list(vector.layers)}
    spec = SteeringSpec.model_validate({"interventions": [{**item, "scope": {"tokens": "generated"}}]})
    return await resolve(spec, GivenVectors((vector,)), engine.info, guard=UNGUARDED)


async def _reader_of(engine: Engine, reader: Engine, instruction: str, prompts: Sequence[str]) -> ConceptVector:
    """Returns the direction by which the reader tells answers under the instruction from answers without it."""
    plain = [(ChatMessage("user", one),) for one in prompts]
    sides = [
        await background(engine, seeded(side, SAMPLING))
        for side in ([under(engine, instruction, one) for one in prompts], plain)
    ]
    pairs = [
        ContrastivePair(conversation(prompt, told.text.strip()), conversation(prompt, other.text.strip()), prompt)
        for prompt, told, other in zip(prompts, *sides, strict=True)
        if told.text.strip() and other.text.strip()
    ]
    layers = tried_layers(reader.info.layer_count)
    return await extract(reader, ExtractionRequest("told", PairSet.of(pairs), layers=layers, position="response_mean"))


async def _scores(
    reader: Engine, direction: ConceptVector, asked: Sequence[str], written: Sequence[Answer]
) -> list[float]:
    """Returns the mean score of each answer over its tokens, in the reader's natural scales: +0.5 under the instruction, -0.5 without."""
    (layer,) = direction.recommended_layers()
    entry = direction.at(layer)
    texts = [conversation(prompt, one.text.strip() or ".") for prompt, one in zip(asked, written, strict=True)]
    starts = iter([len(reader.tokenizer.encode(text[:1])) for text in texts])

    def mean(_: Prompt, capture: Any) -> float:
        read = capture.activations[0, next(starts) :].float() @ entry.direction
        return float((read.mean() - entry.middle) / entry.scale)

    return await read_each(reader, texts, (layer,), mean)


async def _tokens(
    engine: Engine, prompts: Sequence[Prompt], written: Sequence[Answer], plan: SteeringPlan
) -> dict[str, float]:
    """Returns how surprising the answers are to the model without instruction and vector, and how far it diverges under the plan, in
    nats a token."""
    measured = [
        found
        for prompt, one in zip(prompts, written, strict=True)
        if one.tokens and (found := await measure_tokens(engine, engine.tokenizer.encode(prompt), one.tokens, plan))
    ]
    return {name: fmean(fmean(getattr(one, name)) for one in measured) for name in ("surprise", "divergence")}


async def measure(path: Path, names: Sequence[str], model: str, second: str, seconds: float) -> None:
    """Measures until the time is over, and adds each result to the file as it comes."""
    began = time.monotonic()
    async with opened(model, second) as (engine, reader):
        about = {"reader": reader.info.name, "dtype": engine.info.dtype, "prompts": EVALUATED, "fitted": FITTED}
        about |= {"max_tokens": SAMPLING.max_tokens}
        for name in names:
            if name in _measured(path, engine.info.name) or time.monotonic() - began > seconds:
                continue
            at = time.monotonic()
            _add(path, engine.info.name, about, name, await compared(engine, reader, name))
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
    main()
