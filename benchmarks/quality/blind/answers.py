"""Pairs of answers, one steered up and one down, for a blind reading: which one shows more of the concept.

Another model distinguishes them by a vector of its own; a reader does without seeing which is which (`benchmarks.quality.blind.reading`).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.quality.concepts import vector_of
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.concepts.measured import ConceptMeasurement, measurement_of
from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.lab.controls import plan_at, random_like
from steering.lab.judge import instruction_of
from steering.lab.report import other_model_scorer
from steering.model.embedded import EMBEDDED_MODEL
from steering.workflows.generate import background
from steering.workflows.texts import as_prompts

PAIRS = 10
MORE = {"sentiment": slice(PAIRS, 3 * PAIRS)}
"""Prompts of the embedded model's pairs where ten did not decide: at the strengths of a former run, which held above 0 only, the reader
found 8 of 10, and as many alike under a random direction."""
SAMPLING = SamplingParams(max_tokens=48, temperature=0.7)
SEED = 100
"""Of the first prompt, and of the random direction: no other measurement uses these seeds."""


@cache
def blind_prompts(concept: str) -> tuple[str, ...]:
    """Returns the prompts of the pairs of a concept, which nothing else takes. The embedded model has the first PAIRS, or MORE, another one
    the last."""
    found: dict[str, list[str]] = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))
    return tuple(found[concept])


def other_concept(concept: str) -> str:
    """Returns the concept under whose description the pairs of another one are read too: the next of the table."""
    names = list(CONCEPTS)
    return names[(names.index(concept) + 1) % len(names)]


async def blind(engine: Engine, second: Engine, concept: str) -> dict[str, Any]:
    """Returns the pairs of answers at the largest measured strengths, with the score that the second model gives each.

    Where strengths hold in one direction only, the other answer is unsteered; where none holds, there are no pairs. `random`
    are pairs under a random direction of the same dose, `scores_other` those of the second model along another concept: what is
    distinguished there is a difference of style and not the concept.
    """
    measured = measurement_of(concept, engine.info.fingerprint)
    up, down, layers = _strengths(measured)
    if up == down:
        return {"strengths": None, "pairs": [], "random": []}
    vector = await vector_of(engine, concept)
    embedded = engine.info.name == EMBEDDED_MODEL
    read = MORE.get(concept, slice(PAIRS)) if embedded else slice(-PAIRS, None)
    prompts = as_prompts(engine, blind_prompts(concept)[read])
    plans = [
        await plan_at(engine.info, one, strength, layers)
        for one in (vector, random_like(vector, SEED))
        for strength in (up, down)
    ]
    requests = [
        GenerationRequest(prompt, replace(SAMPLING, seed=SEED + index), plan)
        for plan in plans
        for index, prompt in enumerate(prompts)
    ]
    texts = [answer.text for answer in await background(engine, requests)]
    instructions = [instruction_of(prompt, engine.tokenizer) for prompt in prompts]
    names = (concept, other_concept(concept))
    scorers = [await other_model_scorer(second, name, load_concept(name)) for name in names]
    own, other = [await scorer.score(instructions * len(plans), texts) for scorer in scorers]
    half = len(texts) // 2
    return {
        "model": engine.info.fingerprint,
        "strengths": [up, down],
        "layers": list(layers),
        "scorer": scorers[0].evidence,
        "other": other_concept(concept),
        "pairs": _pairs(instructions, texts[:half], own, other),
        "random": _pairs(instructions, texts[half:], own[half:], other[half:]),
    }


def _pairs(
    instructions: Sequence[str], texts: Sequence[str], own: Sequence[float], other: Sequence[float]
) -> list[dict[str, Any]]:
    """texts and their scores: those steered up, then those steered down."""
    return [
        {
            "prompt": instructions[index],
            "up": texts[index],
            "down": texts[index + len(instructions)],
            "scores": [own[index], own[index + len(instructions)]],
            "scores_other": [other[index], other[index + len(instructions)]],
            "read": None,
            "read_other": None,
        }
        for index in range(len(instructions))
    ]


def _strengths(measured: ConceptMeasurement | None) -> tuple[float, float, tuple[int, ...]]:
    """Returns the strengths that hold furthest from 0 above and below it, 0 where none does, and the layers."""
    if measured is None:
        return 0.0, 0.0, ()
    up = 0.0 if measured.strength is None else max(measured.strength)
    return up, 0.0 if measured.negative is None else min(measured.negative), measured.layers
