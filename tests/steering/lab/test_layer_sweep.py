"""Layer sweeps and calibrations on a model whose answers are known: prompts that choose do not report, and places are compared at equal KL."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from steering.client.results import item_rows
from steering.engine.api import SamplingParams
from steering.errors import InvalidRequest
from steering.lab.calibration import calibration, kl_of, neutral_answers, neutral_prompts
from steering.lab.controls import planned, random_like
from steering.lab.evaluations import DoseResponseRequest, dose_response
from steering.lab.layer_sweep import LayerSweepRequest, layer_sweep, resolved
from steering.lab.trials import CONTROLS
from steering.maps import LowRankMap
from steering.plan.types import DoseGuard
from steering.schemas.evaluation import LayerSweepAnswer
from steering.spec import InterventionSpec
from tests.narrowing import present
from tests.plans import change_at
from tests.steering.lab.breaking_controls import breaking_controls
from tests.steering.workflows.linear import GAIN, LinearEngine
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector

WORDS = ("road", "river", "house", "door", "train", "city", "bread", "field")
PROMPTS = tuple(conversation(f"the {word}") for word in WORDS * 2)
SAMPLING = SamplingParams(max_tokens=24, temperature=1.0, seed=3)


async def test_the_prompts_that_report_are_answered_as_in_a_dose_response(engine: LinearEngine) -> None:
    sweep = await layer_sweep(
        engine, LayerSweepRequest(planted_vector(engine), PROMPTS, layers=(2,), strengths=(0.5, 1.0), sampling=SAMPLING)
    )
    request = DoseResponseRequest(
        planted_vector(engine), PROMPTS[1::2], neutral=PROMPTS[:2], strengths=(0.5, 1.0), layers=(2,), sampling=SAMPLING
    )
    points = {point.strength: point for point in (await dose_response(engine, request)).points}
    tested = [point for point in sweep.points if point.split == "test"]
    assert [point.strength for point in tested] == [0.5, 1.0]
    for point in tested:
        other = points[point.strength]
        assert point.moved.mean == pytest.approx(other.concept_score)
        assert point.perplexity_ratio == pytest.approx(other.perplexity_ratio)
        assert point.chance is not None
        assert point.chance != pytest.approx(present(other.chance)), "each has random directions of its own"


def at_two_layers(engine: LinearEngine) -> LayerSweepRequest:
    """A sweep over layer 2, which holds the concept, and layer 3, which holds a direction across it."""
    vector = planted_vector(engine)
    drawn = random_like(vector, 4).at(3).direction
    across = drawn - (drawn @ engine.concept) * engine.concept
    wrong = replace(vector.at(3), direction=across / across.norm())
    vector = replace(vector, layers={2: vector.at(2), 3: wrong})
    return LayerSweepRequest(vector, PROMPTS, strengths=(0.5, 1.0, 1.5), reading_layer=2, sampling=SAMPLING)


async def test_layer_sweep_finds_where_the_concept_is(engine: LinearEngine) -> None:
    """Layer 3 holds a direction across the concept: steering there moves nothing."""
    found = await layer_sweep(engine, at_two_layers(engine))
    places = [(point.split, point.layer, point.strength) for point in found.points]
    assert places[:6] == [("validation", a, s) for a in (2, 3) for s in (0.5, 1.0, 1.5)]
    assert places[6:] == [("test", 2, s) for s in (0.5, 1.0, 1.5)]
    assert present(found.best).layer == 2
    assert present(found.recommended).layers == (2,)
    assert present(found.recommended).strength == (0.5, 1.0)
    rows, half = item_rows(found), len(PROMPTS) // 2
    assert len(rows) == half * (4 + 6) + half * (4 + 3 + 3 * CONTROLS), "random directions at one of the two layers"
    assert {(row["layer"], row["split"]) for row in rows if row["arm"] == "random"} == {(2, "test")}
    assert {point.split for point in found.points if point.chance is not None} == {"test"}
    there = {point.layer: point.moved.mean for point in found.points[:6] if point.strength == 1.0}
    assert there[2] > 0.4
    assert abs(there[3]) < 0.2
    front = {(point.layer, point.strength) for point in found.points if point.pareto}
    assert (2, present(found.best).strength) in front
    assert all(point.kl > 0.0 for point in found.points)


async def test_vectors_layers_and_operations_are_compared_at_equal_kl(engine: LinearEngine) -> None:
    """Layer 3 holds a direction that changes no prediction, so it cannot be calibrated; `other` is half of the concept. Of this model
    the concept alone decides the predictions: random directions of the same KL move the text as far, and nothing is claimed."""
    request = at_two_layers(engine)
    across = request.vector.at(3).direction
    half = (engine.concept + across) / 2.0**0.5
    other = replace(request.vector, name="other", layers={2: replace(request.vector.at(2), direction=half)})
    asked = replace(request, strengths=(0.5, 1.0), unit="kl", vectors=(other,), operations=("add", "clamp"))
    found: LayerSweepAnswer = await layer_sweep(engine, asked)
    whole = [point for point in found.points if point.split == "validation"]
    places = {(point.vector, point.operation, point.layer) for point in whole}
    assert places == {(vector, how, 2) for vector in ("sentiment", "other") for how in ("add", "clamp")}
    for place in places:
        kls = [point.kl for point in whole if (point.vector, point.operation, point.layer) == place]
        assert max(kls) == pytest.approx(1.0, rel=0.25), place
    tested = [point for point in found.points if point.split == "test"]
    assert [point.layer for point in tested] == [2, 2]
    assert max(point.kl for point in tested) == pytest.approx(1.0, rel=0.25)
    assert all(present(point.chance) > point.moved.mean for point in tested)
    assert found.best is None
    assert sum("layer 3 left out" in one for one in found.warnings) == 2


async def test_a_map_is_compared_at_equal_kl_where_a_vector_has_one(engine: LinearEngine) -> None:
    """A map that reads nothing adds the same everywhere: a third of what `add` adds at strength 1. Layer 3 has none."""
    vector = planted_vector(engine)
    third = LowRankMap.of(torch.zeros(1, len(engine.concept)), engine.concept[None] * GAIN / 3.0, torch.ones(1))
    mapped = replace(vector, layers={2: replace(vector.at(2), map=third), 3: vector.at(3)})
    asked = LayerSweepRequest(
        mapped, PROMPTS[:8], layers=(2, 3), strengths=(1.0,), unit="kl", operations=("add", "apply"), sampling=SAMPLING
    )
    found = await layer_sweep(engine, asked)
    points = {(point.operation, point.layer): point for point in found.points if point.split == "validation"}
    assert set(points) == {("add", 2), ("add", 3), ("apply", 2)}
    assert points["apply", 2].kl == pytest.approx(1.0, rel=0.06)
    assert points["apply", 2].strength == pytest.approx(3.0 * points["add", 2].strength, rel=0.06)
    assert points["apply", 2].moved.mean == pytest.approx(points["add", 2].moved.mean, rel=0.1)
    for wrong, param in (
        (replace(asked, strengths=(-1.0,)), "strengths"),
        (replace(asked, layers=(3,)), "operations"),
        (replace(asked, unit="scale"), "operations"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            resolved(engine, wrong)
        assert raised.value.param == param


async def test_random_directions_that_a_bound_of_the_dose_refuses_at_one_strength_count_at_the_others(
    engine: LinearEngine,
) -> None:
    """Random directions need a larger dose for the same KL: none of theirs may have 1 nat, and some not even a tenth."""
    engine.info = replace(engine.info, typical_norms=(1.0,) * engine.info.layer_count)
    found = await layer_sweep(
        engine,
        LayerSweepRequest(
            planted_vector(engine), PROMPTS[:8], layers=(2,), strengths=(0.1, 1.0), unit="kl", sampling=SAMPLING,
            guard=DoseGuard(5.0, "refuse"),
        ),
    )  # fmt: skip
    low, high = [point for point in found.points if point.split == "test"]
    assert low.chance is not None
    assert high.chance is None
    assert [
        one for one in found.warnings if "chance is not known" in one and one.endswith(f"strength {high.strength:g}")
    ]
    rows = [(one.strength, present(one.direction)) for one in found.scores if one.arm == "random"]
    assert {strength for strength, _ in rows} == {low.strength}
    numbers = [number for _, number in rows]
    assert numbers == sorted(set(numbers) & set(range(CONTROLS)))
    assert 1 < len(numbers) <= max(numbers), "each direction keeps its number where others are left out"


async def test_a_calibrated_vector_changes_neutral_text_by_one_nat_in_either_direction(engine: LinearEngine) -> None:
    vector, prompts = planted_vector(engine), neutral_prompts(engine, PROMPTS[:4])
    answer, made = await calibration(engine, vector, (2,), prompts, SAMPLING)
    (point,) = answer.points
    assert [point.kl_positive, point.kl_negative] == [pytest.approx(1.0, rel=0.06)] * 2
    for strength, calibrated in ((1.0, point.positive), (-0.5, -0.5 * -present(point.negative))):
        item = InterventionSpec(vector="mood", strength=strength, unit="kl", layers=(2,))
        plan = await planned(engine.info, made, item)
        assert float(change_at(plan, 2).norm()) == pytest.approx(abs(present(calibrated)) * GAIN, rel=1e-4)
        if strength == 1.0:
            answered = await neutral_answers(engine, prompts, SAMPLING)
            assert (await kl_of(engine, answered, [plan]))[0] == pytest.approx(1.0, rel=0.06)
    for wrong, said in (({}, "needs a calibration"), ({"operation": "ablate"}, "operation 'add'")):
        item = InterventionSpec(vector="mood", unit="kl", layers=(2,), **wrong)
        with pytest.raises(InvalidRequest, match=said):
            await planned(engine.info, vector, item)
    with pytest.raises(InvalidRequest, match="one layer"):
        await planned(engine.info, made, InterventionSpec(vector="mood", unit="kl", layers=(1, 2)))


@pytest.mark.parametrize("unit", ["scale", "kl"])
async def test_no_more_neutral_texts_are_read_than_were_announced(
    engine: LinearEngine, unit: Literal["scale", "kl"]
) -> None:
    request = LayerSweepRequest(
        planted_vector(engine),
        PROMPTS,
        layers=(2,),
        strengths=(0.5,),
        unit=unit,
        neutral=PROMPTS[:2],
        sampling=SAMPLING,
    )
    announced = resolved(engine, request).reads(request)
    await layer_sweep(engine, request)
    read = sum(count for count, spec in engine.capture_calls if spec.layers == ())
    assert 2 * (1 + 1) * 2 <= read <= announced
    assert unit == "kl" or read == announced


async def test_layer_sweep_downwards(engine: LinearEngine) -> None:
    request = LayerSweepRequest(planted_vector(engine), PROMPTS, layers=(2,), strengths=(-0.5,), sampling=SAMPLING)
    found = await layer_sweep(engine, request)
    assert present(found.best).moved.mean > 0.2
    assert (present(found.recommended).strength, present(found.recommended).negative) == (
        None,
        (-0.5, -0.5),
    )


async def test_layer_sweep_says_when_nothing_moves(engine: LinearEngine) -> None:
    vector = planted_vector(engine)
    request = LayerSweepRequest(
        random_like(vector, 5), PROMPTS[:8], layers=(2,), strengths=(0.01,), reader=vector, sampling=SAMPLING
    )
    found = await layer_sweep(engine, request)
    assert (found.best, found.recommended) == (None, None)
    assert found.warnings[0].startswith(
        "does not steer at layer 2, which has the largest lower end of the shift: no strength moved"
    )
    assert found.warnings[0].endswith("not even on average")


async def test_a_layer_sweep_says_when_random_directions_broke() -> None:
    """Where all of them did nothing is claimed, although the vector moves the text."""
    for which, counted, known in ((lambda _: True, CONTROLS, False), (lambda along: along > 0.0, None, True)):
        engine = breaking_controls(0.3, which)
        request = LayerSweepRequest(planted_vector(engine), PROMPTS, layers=(2,), strengths=(0.8,), sampling=SAMPLING)
        found = await layer_sweep(engine, request)
        (point,) = [one for one in found.points if one.split == "test"]
        assert (point.chance is not None) == known
        broke = next(one for one in found.warnings if "random directions made activations non-finite at layer 2" in one)
        assert counted is None or broke.startswith(f"{counted} of {CONTROLS} ")
        if not known:
            assert (found.best, found.recommended) == (None, None)
            assert any("chance is not known at layer 2" in one and one.endswith("0.8") for one in found.warnings)
            assert not any("steer" in one for one in found.warnings), "nothing is known of its mean either"


async def test_layer_sweep_of_both_signs_is_refused(engine: LinearEngine) -> None:
    with pytest.raises(InvalidRequest, match="one sign"):
        await layer_sweep(engine, LayerSweepRequest(planted_vector(engine), PROMPTS, strengths=(-1.0, 1.0)))
