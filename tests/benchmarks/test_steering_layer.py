"""The layer of a concept, and its doses, are chosen by how far coherent text moves there, without random directions."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.quality.concepts import QUICK
from benchmarks.quality.steering_layer import DOSES, SIGNS, STRONGER, steering_doses, steering_layer
from steering.engine.api import GenerationRequest
from steering.lab.controls import random_like
from tests.plans import change_at
from tests.steering.workflows.linear import BREAKS, GAIN, LAYERS, LinearEngine
from tests.steering.workflows.vectors import planted_vector


async def test_the_layer_where_the_concept_is_planted_is_chosen() -> None:
    """The direction at layer 1 lies across the concept. What random directions reach has no part in the choice."""
    added: set[tuple[int, tuple[float, ...]]] = set()

    def note(request: GenerationRequest, index: int) -> None:
        added.update((layer, tuple(change_at(request.plan, layer).tolist())) for layer in request.plan.layers)

    engine = LinearEngine(fails=note)
    engine.info = replace(engine.info, typical_norms=(4.0 * GAIN,) * LAYERS)
    there, drawn = planted_vector(engine).at(2), random_like(planted_vector(engine), 4).at(2).direction
    across = drawn - (drawn @ engine.concept) * engine.concept
    layers = {1: replace(there, direction=across / across.norm()), 2: there}
    vector = replace(planted_vector(engine), layers=layers)
    profile = replace(QUICK, choosing=8, tokens=16)
    assert await steering_layer(engine, "sentiment", vector, profile, checkpoints=None) == 2
    assert len(added) == len(layers) * len(SIGNS) * len(DOSES)
    for layer, change in added:
        along = torch.tensor(change) @ vector.at(layer).direction
        torch.testing.assert_close(along.abs(), torch.tensor(change).norm())


async def test_of_the_doses_at_a_layer_the_strongest_that_keeps_text_coherent_is_chosen(
    tmp_path: Path,
) -> None:
    """The model babbles beyond BREAKS natural scales, and up to there text moves further with the dose."""
    engine = LinearEngine()
    norm = GAIN * BREAKS / 0.23  # a dose of 0.2 is within, 0.26 beyond
    engine.info = replace(engine.info, typical_norms=(norm,) * LAYERS)
    vector, profile = planted_vector(engine), replace(QUICK, tokens=16)
    down, up = await steering_doses(engine, "sentiment", vector, 2, profile, tmp_path, checkpoints=None)
    assert (down, up) == (-0.2, 0.2)
    rows = [json.loads(line) for line in (tmp_path / "doses.sentiment.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["unsteered"] + ["steered"] * len(SIGNS) * len(STRONGER)
