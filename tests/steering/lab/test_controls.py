"""Random controls have the dose of what they stand for, lie in every direction alike, and are apart where each is evidence."""

from dataclasses import replace

import pytest
import torch

from steering.cards import Recommended
from steering.lab.controls import (
    DOSE_RESPONSE,
    LAYER_SWEEP,
    REPORT,
    TRANSFER,
    UNGUARDED,
    control_seeds,
    fewer_pairs_plan,
    plan_at,
    random_alike,
    random_like,
    random_plans,
)
from steering.lab.layer_sweep import LayerSweepRequest, layer_sweep
from steering.lab.trials import CONTROLS
from steering.pairs import ChatMessage, PairSet
from steering.plan.resolve import resolve
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector, LayerDirection, VectorsByName
from tests.plans import change_at
from tests.steering.workflows.linear import D_MODEL, LinearEngine
from tests.steering.workflows.linear_tokenizer import NEGATIVE, POSITIVE, LinearTokenizer
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector


def drawn(name: str, seed: int, layers: tuple[int, ...] = (1, 2)) -> ConceptVector:
    """A vector whose directions at two layers have cosine 0.8."""
    engine, generator = LinearEngine(), torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D_MODEL, 2, generator=generator))[0]
    directions = (basis[:, 0], 0.8 * basis[:, 0] + 0.6 * basis[:, 1])
    entries = {layer: LayerDirection(one, scale=2.0) for layer, one in zip(layers, directions, strict=True)}
    return ConceptVector(name, engine.info.name, engine.info.fingerprint, D_MODEL, "given", entries, version=1)


def test_vectors_that_are_turned_together_keep_all_cosines() -> None:
    vectors = {one.id: one for one in (drawn("first", 1), drawn("second", 2))}
    turned = random_alike(vectors, 5)

    def gram(of: dict[str, ConceptVector]) -> torch.Tensor:
        columns = torch.stack([of[name].at(layer).direction for name in vectors for layer in (1, 2)])
        return columns @ columns.T

    torch.testing.assert_close(gram(turned), gram(vectors), atol=1e-5, rtol=0.0)
    assert all(abs(float(turned[name].at(1).direction @ vectors[name].at(1).direction)) < 0.5 for name in vectors)
    assert {entry.scale for one in turned.values() for entry in one.layers.values()} == {2.0}


@pytest.mark.parametrize("sign", [1.0, -1.0])
async def test_a_random_control_of_two_vectors_has_their_dose(sign: float) -> None:
    """Turned one by one with the same numbers, both would lie on one line, and add up or cancel."""
    engine, vectors = LinearEngine(), (drawn("first", 1), drawn("second", 2))
    items = [{"vector": "first@1", "layers": [1]}, {"vector": "second@1", "layers": [1], "strength": sign}]
    spec = SteeringSpec.model_validate({"interventions": items})
    plan = await resolve(spec, VectorsByName({one.id: one for one in vectors}), engine.info, guard=UNGUARDED)
    controls = await random_plans(engine.info, plan, {one.id: one for one in vectors}, range(4))
    lengths = [change_at(one, 1).norm() for one in (plan, *controls)]
    for length in lengths[1:]:
        torch.testing.assert_close(length, lengths[0])


async def test_a_random_control_of_an_add_that_shares_its_dose_has_its_dose() -> None:
    """The dose that is shared is that of the layers which are recommended for the vector."""
    info, vector = replace(LinearEngine().info, typical_norms=(4.0,) * 4), drawn("first", 1)
    scales = {1: vector.layers[1], 2: replace(vector.layers[2], scale=8.0)}
    vector = replace(vector, layers=scales, recommended=Recommended((1,)))
    item = {"vector": vector.id, "layers": [1, 2], "share_dose": True}
    spec = SteeringSpec.model_validate({"interventions": [item]})
    plan = await resolve(spec, VectorsByName({vector.id: vector}), info, guard=UNGUARDED)
    for control in await random_plans(info, plan, {vector.id: vector}, range(2)):
        for layer in (1, 2):
            torch.testing.assert_close(change_at(control, layer).norm(), change_at(plan, layer).norm())


def test_runs_of_other_seeds_or_purposes_share_no_random_direction() -> None:
    runs = [(seed, purpose) for seed in range(8) for purpose in (DOSE_RESPONSE, LAYER_SWEEP, REPORT, TRANSFER)]
    assert len({one for run in runs for one in control_seeds(*run, CONTROLS)}) == len(runs) * CONTROLS


def test_a_random_direction_is_as_likely_as_its_opposite() -> None:
    vector = drawn("first", 3)
    directions = torch.stack([random_like(vector, seed).at(1).direction for seed in range(400)])
    positive = (directions > 0.0).float().mean(dim=0)
    assert float(positive.min()) > 0.35
    assert float(positive.max()) < 0.65


class Phased(LinearTokenizer):
    """The first word of an answer is thought, the others are said."""

    def conversation_phases(self, messages: tuple[ChatMessage, ...]) -> list[str]:
        words = len(messages[-1].content.split())
        return ["prompt"] * (len(self.encode(messages)) - words) + ["thinking"] + ["answer"] * (words - 1)


@pytest.mark.parametrize(("phase", "along"), [("thinking", True), ("answer", False)])
async def test_fewer_pairs_are_read_in_the_phases_of_the_vector(engine: LinearEngine, phase: str, along: bool) -> None:
    """A kind thought is followed by a grim word and a grim one by a kind word, so that the answers differ in words alone."""
    engine.tokenizer = Phased()
    words = [(kind, grim) for kind, grim in zip(POSITIVE, NEGATIVE, strict=True)]
    positive, negative = (tuple(conversation("the road", " ".join(pair[::step])) for pair in words) for step in (1, -1))
    provenance = {"position": "mean", "phase": [phase]}
    vector = replace(planted_vector(engine), version=1, provenance=provenance)
    plan = await plan_at(engine.info, vector, 1.0, (2,))
    topics = tuple(f"{number}" for number in range(len(words)))
    made = await fewer_pairs_plan(engine, vector, PairSet(positive, negative, topics), plan, {vector.id: vector})
    change = torch.nn.functional.normalize(change_at(made, 2), dim=0)
    assert (abs(float(change @ engine.concept)) > 0.8) == along


async def test_a_layer_sweep_compares_one_layer_with_directions_drawn_there(engine: LinearEngine) -> None:
    """Eight directions of the dose of the vector, no two of them copies, at the one layer of two that is tested, on the prompts that
    report."""
    seen: list[tuple[int, torch.Tensor]] = []

    def note(request: object, index: int) -> None:
        plan = request.plan  # type: ignore[attr-defined]
        if index == 0 and plan.layers:
            seen.extend((layer, change_at(plan, layer)) for layer in plan.layers)

    engine = LinearEngine(fails=note)
    vector = replace(planted_vector(engine), layers={at: planted_vector(engine).at(at) for at in (1, 2)})
    prompts = (conversation("the road"), conversation("the river"))
    await layer_sweep(engine, LayerSweepRequest(vector, prompts, strengths=(0.5,), reading_layer=2))
    (layer,) = {at for at in (1, 2) if sum(one == at for one, _ in seen) > 1}
    assert len(seen) == 2 + 1 + CONTROLS, "both layers on one prompt, one of them on the other"
    ours, *controls = [one for at, one in seen[2:] if at == layer]
    assert len(controls) == CONTROLS
    for number, one in enumerate(controls):
        assert float(one.norm()) == pytest.approx(float(ours.norm()), rel=1e-4)
        for other in (ours, *controls[:number]):
            assert abs(float(torch.nn.functional.cosine_similarity(one, other, dim=0))) < 0.5
