"""Compares trained vectors with mean difference at one layer: the shift of text at equal perplexity."""

from dataclasses import asdict, replace
from typing import Any

from benchmarks.quality.concepts import Profile, choosing_prompts, reporting_prompts, strengths_of, vector_of
from benchmarks.quality.curves import Curve, curve, difference, reach_interval, reached
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import items_of, write_items
from steering.engine.api import Engine, Prompt, TrainingSettings
from steering.lab.controls import plan_at
from steering.lab.trials import Trial, dose_point, read_back, run_trials
from steering.vectors import ConceptVector

CONTESTED = ("sentiment", "formality")
BOUNDS = (1.25, 1.5)
DOSES = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Planned relative doses, the same for both: equal lengths are added."""
TRAINED_AT = (0.05, 0.15)
"""Between which doses a direction is trained."""
SETTINGS = {
    "kl_coefficient 0": TrainingSettings(steps=40, batch=3, kl_coefficient=0.0),
    "kl_coefficient 1, small steps": TrainingSettings(steps=40, batch=3, learning_rate=0.03),
}


async def contest(engine: Engine, concept: str, profile: Profile) -> dict[str, Any]:
    """Compares settings on the choosing prompts, and the best of them with mean difference on the reporting prompts.

    Texts are read back with a probe's direction, which is neither of the two.
    """
    base = await vector_of(engine, concept)
    layer = base.recommended_layers()[0]
    low, high = strengths_of(engine, base, TRAINED_AT)
    strengths = low, high
    trained: dict[str, ConceptVector] = {}
    for name, settings in SETTINGS.items():
        progress_printer(f"{concept}, {name}")(0, 1, "training")
        trained[name] = await vector_of(
            engine, concept, layers=(layer,), training=replace(settings, strengths=strengths)
        )
    vectors = {"mean difference": base, **trained}
    chosen = await _curves(
        engine,
        concept,
        vectors,
        layer,
        choosing_prompts(engine, concept, profile.choosing),
        profile,
        "training.choosing",
    )
    best = max(trained, key=lambda name: reached(chosen[name][0], BOUNDS[-1]))
    finalists = {"mean difference": base, best: trained[best]}
    prompts = reporting_prompts(engine, concept, profile.reporting)
    final = await _curves(engine, concept, finalists, layer, prompts, profile, "training")
    return {
        "layer": layer,
        "choosing": {name: _reach(found) for name, (found, _) in chosen.items()},
        "best": best,
        "settings": {**asdict(SETTINGS[best]), "strengths": list(strengths)},
        "cosine": {name: float(one.at(layer).direction @ base.at(layer).direction) for name, one in trained.items()},
        "reporting": {name: {**_reach(found), "points": points} for name, (found, points) in final.items()},
        "further": {
            str(bound): list(difference(final[best][0], final["mean difference"][0], bound)) for bound in BOUNDS
        },
    }


def _reach(found: Curve) -> dict[str, Any]:
    return {str(bound): [reached(found, bound), *reach_interval(found, bound)] for bound in BOUNDS}


async def _curves(
    engine: Engine,
    concept: str,
    vectors: dict[str, ConceptVector],
    layer: int,
    prompts: tuple[Prompt, ...],
    profile: Profile,
    part: str,
) -> dict[str, tuple[Curve, list[dict[str, Any]]]]:
    """Measures all vectors in one run, so that they share prompts, noise and the unsteered texts. part: of the file of scores."""
    base = vectors["mean difference"]
    reader = await vector_of(engine, concept, method="probe")
    reading = read_back(engine, base, reader, None, "projection")
    amounts = strengths_of(engine, base, DOSES if profile.tokens > 8 else DOSES[:2])
    scales = {name: base.at(layer).scale / one.at(layer).scale for name, one in vectors.items()}
    plans = [
        await plan_at(engine.info, one, amount * scales[name], (layer,))
        for name, one in vectors.items()
        for amount in amounts
    ]
    progress = progress_printer(f"{concept}, training")
    unsteered, trials = await run_trials(engine, prompts, plans, reading, profile.sampling, progress=progress)
    found, scores = {}, [unsteered.answer("unsteered")]
    for index, name in enumerate(vectors):
        mine = trials[index * len(amounts) : (index + 1) * len(amounts)]
        found[name] = curve(amounts, mine, unsteered), _points(amounts, mine, unsteered)
        scores += [one.answer("steered", strength=each, vector=name) for each, one in zip(amounts, mine, strict=True)]
    write_items(part, concept, scores, items_of(engine))
    return found


def _points(amounts: tuple[float, ...], trials: tuple[Trial, ...], unsteered: Trial) -> list[dict[str, Any]]:
    return [
        asdict(dose_point(amount, trial, unsteered, 0.0))
        for amount, trial in zip(amounts, trials, strict=True)
        if trial.broken is None
    ]
