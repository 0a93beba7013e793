"""`python -m benchmarks.quality.random_directions`: how often a random direction is said to steer, by the whole rule of a dose-response.

Every direction is run once at every strength; then each stands for the vector, with CONTROLS others as its random directions. The scores of all answers are kept in
benchmarks/results/items, from which the table of docs/mathematics.md is made. A run leaves out the directions that it has of the same model, layer, strengths and data.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.open_engine import opened
from benchmarks.contenders.registry import run_as_served
from benchmarks.quality.concepts import digest, reporting_prompts, strengths_of, vector_of
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import (
    ITEMS,
    PARTS,
    Stopwatch,
    known_of,
    read_results,
    write_items,
    write_results,
)
from steering.cards import Recommended
from steering.concepts.loader import load_concept, load_evaluation_prompts, load_neutral
from steering.concepts.measured import measurement_of, measurements
from steering.engine.api import Engine, SamplingParams
from steering.lab.controls import plan_at, random_like
from steering.lab.trials import CONTROLS, AnswerMeasures, Trial, dose_points, read_back, run_trials
from steering.model.embedded import EMBEDDED_MODEL
from steering.pairs import dataset_digest
from steering.schemas.evaluation import ScoresAnswer
from steering.workflows.measures import share

CONCEPT = "sentiment"
"""Whose vector reads the answers and gives the random directions their length."""
DOSES = (-0.16, -0.1, -0.06, 0.06, 0.1, 0.16)
DIRECTIONS, PROMPTS, TOKENS = 100, 10, 16
DRAWS = 20
"""Sets of random directions with which each direction is judged."""
SEED = 20_000
"""Of the first direction and of the draws."""
SAMPLING = SamplingParams(max_tokens=TOKENS, temperature=0.7, seed=0)
PART = "random"
SCORES = ITEMS / f"{PART}.{CONCEPT}.jsonl"
RESULT = ITEMS.parent / "random_directions.json"
JUDGED = "judged"
"""Part of the result: how many directions are said to steer."""


def known_rows(path: Path) -> list[ScoresAnswer]:
    """Returns the scores of a file; none where there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [ScoresAnswer.model_validate_json(line) for line in lines]


def known_scores(about: Mapping[str, Any], scores: Path = SCORES, result: Path = RESULT) -> list[ScoresAnswer]:
    """Returns the scores of a run of what `about` says; none where the result is of another model, layer, strengths, seed or data."""
    return known_rows(scores) if known_of(result, about, JUDGED) else []


def about_of(engine: Engine, layers: Sequence[int], strengths: Sequence[float]) -> dict[str, Any]:
    """Returns what a result is of. data: the digest of the pairs, of the prompts that are answered, and of those of the typical norms."""
    prompts = load_evaluation_prompts(CONCEPT)[:PROMPTS]
    return {
        "model": engine.info.name,
        "dtype": engine.info.dtype,
        "concept": CONCEPT,
        "layers": list(layers),
        "strengths": sorted(strengths),
        "prompts": PROMPTS,
        "max_tokens": TOKENS,
        "seed": SEED,
        "sampling_seed": SAMPLING.seed,
        "data": digest([dataset_digest(load_concept(CONCEPT)), prompts, load_neutral()]),
    }


async def measure(engine: Engine, directions: int) -> None:
    """Runs the directions that are not known at all strengths, adds their scores, and writes the result."""
    watch = Stopwatch()
    vector = await vector_of(engine, CONCEPT)
    known = measurement_of(CONCEPT, engine.info.fingerprint)
    layers = vector.recommended_layers() if known is None else known.layers
    vector = replace(vector, recommended=Recommended(layers, None, None, basis="measured"))
    strengths = strengths_of(engine, vector, DOSES)
    about = about_of(engine, layers, strengths)
    kept = known_scores(about)
    have = {one.direction for one in kept}
    numbers = [number for number in range(directions) if number not in have]
    if not numbers:
        return
    plans = [
        await plan_at(engine.info, random_like(vector, SEED + number), strength, layers)
        for number in numbers
        for strength in strengths
    ]
    unsteered, found = await run_trials(
        engine,
        reporting_prompts(engine, CONCEPT, PROMPTS),
        plans,
        read_back(engine, vector, None, None, "projection"),
        SAMPLING,
        checkpoints=PARTS,
        progress=progress_printer("random directions"),
    )
    rows = kept or [unsteered.answer("unsteered")]
    apart = np.abs(np.array(trial_of(rows[0]).scores) - unsteered.scores)
    print(f"unsteered scores differ from those of the file by {apart.mean():.3f} on average", flush=True)
    for index, trial in enumerate(found):
        place, at = divmod(index, len(strengths))
        rows.append(trial.answer("random", direction=numbers[place], strength=strengths[at]))
    write_items(PART, CONCEPT, rows)
    measured = {"date": datetime.now(UTC).date().isoformat(), **asdict(watch.spent()), JUDGED: judged()}
    write_results(RESULT, about | measured)


def trial_of(scores: ScoresAnswer) -> Trial:
    """Returns a trial from the scores that were kept: the means over the samples of a prompt."""
    measures = []
    for row, surprises in zip(scores.scores, scores.surprises, strict=True):
        known = [one for one in surprises if one is not None]
        measures.append(AnswerMeasures(float(np.mean(row)), float(np.mean(known)) if known else None, 0.0, 0.1))
    return Trial(tuple(measures))


def passes(unsteered: Trial, own: dict[float, Trial], controls: Sequence[dict[float, Trial]]) -> bool:
    """Returns whether a direction is said to steer at any strength of either sign."""
    rows = {strength: [trial, *(one[strength] for one in controls)] for strength, trial in own.items()}
    points = dose_points(unsteered, rows, [None] * len(rows))
    return any(point.margin is not None for point in points.values())


def judged(path: Path = SCORES, draws: int = DRAWS) -> dict[str, Any]:
    """Returns the share of directions that pass, with each of `draws` sets of random directions."""
    rows = known_rows(path)
    unsteered = next(trial_of(row) for row in rows if row.arm == "unsteered")
    curves: dict[int, dict[float, Trial]] = {}
    for row in rows:
        if row.direction is not None and row.strength is not None and row.scores:
            curves.setdefault(row.direction, {})[row.strength] = trial_of(row)
    rng, names = np.random.default_rng(SEED), sorted(curves)
    found = np.zeros((len(names), draws))
    for place, name in enumerate(names):
        others = [one for one in names if one != name]
        for draw in range(draws):
            chosen = rng.choice(others, CONTROLS, replace=False)
            found[place, draw] = passes(unsteered, curves[name], [curves[int(one)] for one in chosen])
    first = share(int(found[:, 0].sum()), len(names))
    return {
        "directions": len(names),
        "steering": int(found[:, 0].sum()),
        "interval": first.interval,
        "draws": draws,
        "share_of_draws": float(found.mean()),
    }


def random_table(path: Path = RESULT) -> str:
    """Shows how many random directions are said to steer."""
    found = read_results(path)
    if not found:
        return "Not measured yet.\n"
    shown, (layer,) = found[JUDGED], found["layers"]
    low, high = shown["interval"]
    text = (
        f"Of {shown['directions']} random directions at layer {layer} of {found['model']} ({found['prompts']} prompts, {len(found['strengths'])} strengths "
        f"of both signs from {found['strengths'][0]:g} to {found['strengths'][-1]:g}, answers of {found['max_tokens']} tokens, {CONTROLS} others as random "
        f"directions), **{shown['steering']}** are said to steer: {shown['steering'] / shown['directions']:.1%} [{low:.1%}, {high:.1%}]. With {shown['draws']} "
        f"sets of random directions for each it is {shown['share_of_draws']:.1%}. `python -m benchmarks.quality.random_directions` measured it on {found['date']} "
        f"(seed {found['seed']}, data `{found['data']}`); the scores are in `benchmarks/results/items`.\n"
    )
    now = measurements()[EMBEDDED_MODEL][CONCEPT].layers
    if now != (layer,):
        text += f"\nThe layer of `{CONCEPT}` is {now[0]} now; `make evidence` measures random directions there.\n"
    return text


async def main() -> None:
    """Measures, unless `--judge` is given, and prints the shares."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.random_directions", description=__doc__)
    parser.add_argument("--judge", action="store_true", help="judge the scores of the last run")
    parser.add_argument("--directions", type=int, default=DIRECTIONS)
    chosen = parser.parse_args()
    if not chosen.judge:
        async with opened(EMBEDDED_MODEL, compiled=True) as (engine,):
            await measure(engine, chosen.directions)
    else:
        write_results(RESULT, read_results(RESULT) | {JUDGED: judged()})
    print(random_table())


if __name__ == "__main__":
    run_as_served("benchmarks.quality.random_directions")
    asyncio.run(main())
