"""The layer of a concept, and its doses, are chosen by how far coherent text moves there, without random directions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import stdtrit

from benchmarks.quality.concepts import QUICK
from benchmarks.quality.steering_layer import BROKEN, CAUTIOUS, DOSES, SIGNS, STRONGER, steering_doses, steering_layer
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


async def test_of_the_doses_that_keep_text_coherent_the_one_that_moves_it_furthest_is_chosen(tmp_path: Path) -> None:
    """The written scores lead to the same choice. At a norm at which the model babbles at every dose, the smallest is chosen."""
    engine, profile = LinearEngine(), replace(QUICK, tokens=16)
    vector = planted_vector(engine)
    engine.info = replace(engine.info, typical_norms=(4.0 * GAIN,) * LAYERS)
    down, up = await steering_doses(engine, "sentiment", vector, 2, profile, tmp_path, checkpoints=None)
    lines = (tmp_path / "doses.sentiment.jsonl").read_text(encoding="utf-8").splitlines()
    unsteered, *rows = [json.loads(line) for line in lines]
    ends: dict[float, float] = {}
    for row, dose in zip(rows, [sign * dose for sign in SIGNS for dose in STRONGER], strict=True):
        moved, dearer = (
            np.array(row[field]).mean(1) - np.array(unsteered[field]).mean(1) for field in ("scores", "surprises")
        )
        width, margin = (stdtrit(len(one) - 1, 0.975) * one.std(ddof=1) / len(one) ** 0.5 for one in (moved, dearer))
        coherent = np.exp(dearer.mean() + margin) <= CAUTIOUS
        ends[dose] = np.sign(dose) * moved.mean() - width if coherent else BROKEN
    assert up == max(STRONGER, key=lambda dose: ends[dose])
    assert down == -max(STRONGER, key=lambda dose: ends[-dose])
    engine.info = replace(engine.info, typical_norms=(40.0 * BREAKS * GAIN,) * LAYERS)
    found = await steering_doses(engine, "sentiment", vector, 2, profile, tmp_path, checkpoints=None)
    assert found == (-STRONGER[0], STRONGER[0])
