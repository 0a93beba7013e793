"""Chooses the layer at which a concept's vector steers furthest, and doses there, on prompts that no reported result uses."""

from math import copysign
from pathlib import Path

from benchmarks.quality.concepts import Profile, choosing_prompts, dose_prompts, neutral_prompts
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import PARTS, write_items
from steering.cards import COHERENT
from steering.engine.api import Engine
from steering.lab.controls import plan_at
from steering.lab.trials import Checkpoints, Trial, advantage, perplexity_ratio, read_back, run_trials
from steering.vectors import ConceptVector

DEPTHS = (0.34, 0.41, 0.48, 0.55, 0.62, 0.69)
"""Layers that are tried, as a share of the depth: layers 10 to 20 of the embedded model. Cards read equally well over most of
this range, and vectors do not steer equally well over it."""
DOSES = (0.08, 0.13, 0.2)
"""Planned relative doses, tried above and below zero. Of refusal, no shift at 0.08 exceeds chance with its interval at
any layer, and at 0.2 text stays coherent in both directions at three of six."""
SIGNS = (1.0, -1.0)
STRONGER = (0.1, 0.13, 0.16, 0.2, 0.24, 0.28, 0.32)
"""Doses among which those of a chosen layer are chosen, on DOSE_PROMPTS user messages of the pairs and as many prompts of former runs."""
DOSE_PROMPTS = 24
CAUTIOUS = 1.4
"""Bound of the whole interval of perplexity where a dose is chosen: below COHERENT, so that it may grow on other prompts."""
BROKEN = -1.0
"""What a point counts whose text breaks, in natural scales: less than one that moves nothing."""


async def steering_layer(
    engine: Engine, concept: str, vector: ConceptVector, profile: Profile, checkpoints: Checkpoints | None = PARTS
) -> int:
    """Returns the layer with the highest sum, over both directions, of the lower end of the shift.

    Points whose perplexity exceeds COHERENT times that of unsteered text do not count. As in a layer sweep, the choice is made
    by the shift alone: what random directions reach differs between layers, and the dose-response at the chosen layer, on
    other prompts, is compared with those drawn there.
    """
    count = engine.info.layer_count
    layers = sorted({round(share * (count - 1)) for share in DEPTHS} & set(vector.layers))
    prompts = choosing_prompts(engine, concept, profile.choosing) or neutral_prompts(engine, profile.choosing)
    places = [(layer, sign * dose) for layer in layers for sign in SIGNS for dose in DOSES]
    plans = [
        await plan_at(engine.info, vector, dose * engine.info.typical_norms[layer] / vector.at(layer).scale, (layer,))
        for layer, dose in places
    ]
    reading = read_back(engine, vector, None, None, "projection")
    unsteered, trials = await run_trials(
        engine,
        prompts,
        plans,
        reading,
        profile.sampling,
        checkpoints=checkpoints,
        progress=progress_printer(f"{concept}, layer"),
    )
    reached = {(layer, sign): BROKEN for layer in layers for sign in SIGNS}
    for (layer, dose), trial in zip(places, trials, strict=True):
        side = layer, copysign(1.0, dose)
        reached[side] = max(reached[side], _lower_end(dose, trial, unsteered))
    return max(layers, key=lambda layer: sum(reached[layer, sign] for sign in SIGNS))


async def steering_doses(
    engine: Engine,
    concept: str,
    vector: ConceptVector,
    layer: int,
    profile: Profile,
    items: Path,
    checkpoints: Checkpoints | None = PARTS,
) -> tuple[float, float]:
    """Returns the dose below and above 0 with the highest lower end of the shift at a layer, of those at which the whole interval of
    perplexity stays below CAUTIOUS; the smallest where none does. Writes the scores behind it to the folder `items`."""
    prompts = dose_prompts(engine, concept, DOSE_PROMPTS, profile.reporting) or neutral_prompts(engine, DOSE_PROMPTS)
    unit = engine.info.typical_norms[layer] / vector.at(layer).scale
    doses = [sign * dose for sign in SIGNS for dose in STRONGER]
    plans = [await plan_at(engine.info, vector, dose * unit, (layer,)) for dose in doses]
    reading = read_back(engine, vector, None, None, "projection")
    report = progress_printer(f"{concept}, doses")
    unsteered, trials = await run_trials(
        engine, prompts, plans, reading, profile.sampling, checkpoints=checkpoints, progress=report
    )
    scores = [one.answer("steered", strength=round(dose * unit, 2)) for dose, one in zip(doses, trials, strict=True)]
    write_items("doses", concept, [unsteered.answer("unsteered"), *scores], items)
    ends = {dose: _lower_end(dose, one, unsteered, CAUTIOUS) for dose, one in zip(doses, trials, strict=True)}
    print(f"{concept}, layer {layer}: lower ends by dose {ends}", flush=True)
    up, down = (max((sign * dose for dose in STRONGER), key=lambda dose: ends[dose]) for sign in SIGNS)
    return down, up


def _lower_end(dose: float, trial: Trial, unsteered: Trial, cautious: float | None = None) -> float:
    """Returns the lower end of the interval of the shift along the sign of the dose; BROKEN where text breaks. cautious: bound of the
    whole interval of perplexity; without it the mean is at most COHERENT."""
    if trial.broken is not None:
        return BROKEN
    perplexity = perplexity_ratio(trial, unsteered)
    if perplexity.mean > COHERENT or (cautious and perplexity.interval and perplexity.interval[1] > cautious):
        return BROKEN
    found = advantage(dose, trial, unsteered, 0.0)
    return found.mean if found.interval is None else found.interval[0]
