"""Retention on IFEval (Zhou et al., arXiv 2311.07911): how many prompts are followed at equal KL, beside random directions. IFEval's own code
verifies every instruction of a prompt."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.field import behaviours, data
from benchmarks.field.run import Run, at
from steering.workflows.measures import difference_of_shares, share

RANDOM = 3
"""Random directions, at most."""
SIGNS = {"+": 1.0, "-": -1.0}
UNSTEERED = "unsteered"
Items = list[dict[str, Any]]


def reference(run: Run, layer: int) -> dict[str, Any]:
    """Measures the model without steering, and random directions at a layer."""
    few = replace(run, counts=replace(run.counts, random=min(run.counts.random, RANDOM)), directions={})
    names = few.random(layer)
    steered = {f"{name} {sign}": at(name, layer, strength) for name in names for sign, strength in SIGNS.items()}
    found = _answered(run, {UNSTEERED: [], **steered})
    plain = {data.digest(item["prompt"]): item["followed"] for item in found[UNSTEERED]}
    random = {name: {sign: _result(found[f"{name} {sign}"], plain) for sign in SIGNS} for name in names}
    return {"layer": layer, UNSTEERED: _result(found[UNSTEERED]), "random": random, **_facts(run)}


def following(run: Run, name: str, own: Mapping[str, Any], plain: Mapping[str, bool]) -> dict[str, Any]:
    """Measures a behaviour's vector at the layer of its own result, which says that it was measured. plain: by digest of a prompt whether it
    is followed without steering."""
    vector, layer = behaviours.vector_name(name), own["layer"]
    if run.strengths(vector, layer) != tuple(own["strengths"]):
        behaviours.fitted(run, name)
        run.calibrated(vector, run.layers)
    found = _answered(run, {sign: at(vector, layer, strength) for sign, strength in SIGNS.items()})
    results = {sign: _result(items, plain) for sign, items in found.items()}
    return {"layer": layer, "strengths": run.strengths(vector, layer), **results, **_facts(run)}


def _sample(run: Run) -> Items:
    return data.chosen(data.verifiable(run.folder), run.counts.following[0], run.seed)


def _facts(run: Run) -> dict[str, Any]:
    rows = _sample(run)
    return {"counts": {"test": len(rows), "tokens": run.counts.following[1]}, "digest": data.digest(rows)}


def _answered(run: Run, arms: Mapping[str, Any]) -> dict[str, Items]:
    """Answers the sample in each arm. arms: by name the steering. Returns by arm what each answer follows."""
    rows, check = _sample(run), data.checker(run.folder)
    prompts = [row["prompt"] for row in rows]
    answers = run.answers({arm: (prompts, steering) for arm, steering in arms.items()}, run.counts.following[1])

    def item(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
        kept = check(row, answer)
        return {"prompt": row["prompt"], "text": answer, "instructions": kept, "followed": all(kept)}

    return {arm: [item(*pair) for pair in zip(rows, texts, strict=True)] for arm, texts in answers.items()}


def _result(items: Items, plain: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """Returns the share of prompts of which all instructions are followed, and its paired change from `plain`."""
    found = share(sum(item["followed"] for item in items), len(items))
    result: dict[str, Any] = {"share": found.mean, "interval": found.interval, "items": items}
    if plain is not None:
        change = difference_of_shares([item["followed"] - plain[data.digest(item["prompt"])] for item in items])
        result["change"] = {"mean": change.mean, "interval": change.interval}
    return result
