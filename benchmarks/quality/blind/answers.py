"""Pairs of answers, one steered up and one down, for a blind reading: which one shows more of the concept.

Another model distinguishes them by a vector of its own; a reader does without seeing which is which (`benchmarks.quality.blind.reading`).
"""

from dataclasses import replace
from typing import Any

from benchmarks.quality.concepts import reporting_prompts, vector_of
from steering.concepts.loader import load_concept
from steering.concepts.measured import ConceptMeasurement, measurement_of
from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.lab.controls import plan_at
from steering.lab.judge import instruction_of
from steering.lab.report import other_model_scorer
from steering.workflows.generate import background

PAIRS = 10
SAMPLING = SamplingParams(max_tokens=48, temperature=0.7)
SEED = 100
"""Of the first prompt: no other measurement uses these seeds."""


async def blind(engine: Engine, second: Engine, concept: str) -> dict[str, Any]:
    """Returns the pairs of answers at the largest measured strengths, with the score that the second model gives each.

    Where strengths hold in one direction only, the other answer is unsteered; where none holds, there are no pairs.
    """
    measured = measurement_of(concept, engine.info.fingerprint)
    up, down, layers = _strengths(measured)
    if up == down:
        return {"strengths": None, "pairs": []}
    vector = await vector_of(engine, concept)
    prompts = reporting_prompts(engine, concept, PAIRS)
    plans = [await plan_at(engine.info, vector, strength, layers) for strength in (up, down)]
    requests = [
        GenerationRequest(prompt, replace(SAMPLING, seed=SEED + index), plan)
        for plan in plans
        for index, prompt in enumerate(prompts)
    ]
    texts = [answer.text for answer in await background(engine, requests)]
    instructions = [instruction_of(prompt, engine.tokenizer) for prompt in prompts]
    scorer = await other_model_scorer(second, concept, load_concept(concept))
    scores = await scorer.score(instructions * 2, texts)
    return {
        "model": engine.info.fingerprint,
        "strengths": [up, down],
        "layers": list(layers),
        "scorer": scorer.evidence,
        "pairs": [
            {
                "prompt": instructions[index],
                "up": texts[index],
                "down": texts[index + PAIRS],
                "scores": [scores[index], scores[index + PAIRS]],
                "read": None,
            }
            for index in range(PAIRS)
        ],
    }


def _strengths(measured: ConceptMeasurement | None) -> tuple[float, float, tuple[int, ...]]:
    """Returns the strengths that hold furthest from 0 above and below it, 0 where none does, and the layers."""
    if measured is None:
        return 0.0, 0.0, ()
    up = 0.0 if measured.strength is None else max(measured.strength)
    return up, 0.0 if measured.negative is None else min(measured.negative), measured.layers
