"""Compares positions to read pairs at and layers to steer, on prompts that no reported result uses."""

from typing import Any

from benchmarks.quality.concepts import Profile, choosing_prompts, vector_of
from benchmarks.quality.curves import curve, reached
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import items_of, write_items
from steering.engine.api import Engine, Position
from steering.errors import SteeringError
from steering.lab.controls import plan_at
from steering.lab.trials import perplexity_ratio, read_back, run_trials
from steering.vectors import ConceptVector

TRIED_ON = ("sentiment", "formality", "refusal")
"""Concepts whose defaults are chosen."""
POSITIONS: tuple[Position, ...] = ("last", "mean", "response_mean")
PLACES: dict[tuple[int, ...], tuple[float, ...]] = {
    (14,): (1.5, 3.0),
    (16,): (1.5, 3.0),
    (12, 14, 16): (0.6, 1.2),
    (12, 13, 14, 15, 16): (0.4, 0.8),
}
"""Layers of the embedded model -> strengths tried there."""
BOUNDS = (1.25, 1.5)


async def choice(engine: Engine, concept: str, profile: Profile) -> list[dict[str, Any]]:
    """Measures the mean shift at equal perplexity of every position and set of layers, read back with one vector."""
    vectors = await _vectors(engine, concept)
    reading = read_back(engine, vectors["response_mean"], None, None, "projection")
    places = [(position, layers) for position in vectors for layers in PLACES]
    plans = [
        await plan_at(engine.info, vectors[position], strength, layers)
        for position, layers in places
        for strength in PLACES[layers]
    ]
    prompts = choosing_prompts(engine, concept, profile.choosing)
    unsteered, trials = await run_trials(
        engine, prompts, plans, reading, profile.sampling, progress=progress_printer(f"{concept}, choice")
    )
    rows, rest, scores = [], iter(trials), [unsteered.answer("unsteered")]
    for position, layers in places:
        strengths = PLACES[layers]
        here = [next(rest) for _ in strengths]
        found = curve(strengths, here, unsteered)
        read_at = f"{position} at {', '.join(map(str, layers))}"
        scores += [
            one.answer("steered", strength=each, variation=read_at) for each, one in zip(strengths, here, strict=True)
        ]
        rows.append(
            {
                "position": position,
                "layers": list(layers),
                "strengths": list(strengths),
                "shift": found.shift.mean(1)[1:].tolist(),
                "perplexity_ratio": [perplexity_ratio(trial, unsteered).mean for trial in here],
                "relative_dose": [max((one.dose for one in trial.measures), default=0.0) for trial in here],
                "reached": {str(bound): reached(found, bound) for bound in BOUNDS},
            }
        )
    write_items("choice", concept, scores, items_of(engine))
    return rows


async def _vectors(engine: Engine, concept: str) -> dict[str, ConceptVector]:
    """Extracts a vector per position. Positions that the texts do not have are left out."""
    found: dict[str, ConceptVector] = {}
    for position in POSITIONS:
        try:
            found[str(position)] = await vector_of(engine, concept, position=position)
        except SteeringError as error:
            print(f"{concept}, {position}: {error}", flush=True)
    return found
