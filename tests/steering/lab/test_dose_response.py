"""Evaluations find the planted layer and the planted range, and give a random vector no credit."""

import asyncio
import json
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from steering.cards import LayerQuality, QualityCard, verdict_without_proof
from steering.client.results import DoseResponse
from steering.engine.api import GenerationRequest, SamplingParams
from steering.errors import InvalidRequest, NonfiniteActivations, SteeringError, VectorModelMismatch
from steering.lab.controls import random_like
from steering.lab.evaluations import DoseResponseRequest, dose_response, with_evidence
from steering.lab.layer_sweep import LayerSweepRequest, layer_sweep
from steering.lab.trials import chance, independent_claims, reading_layer
from steering.schemas.evaluation import DoseResponseAnswer
from steering.workflows.measures import estimate
from steering.workflows.texts import as_prompts
from tests.narrowing import present
from tests.plans import change_at
from tests.steering.lab.breaking_controls import BreakingReads, breaking_controls
from tests.steering.workflows.linear import GAIN, LinearEngine
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector

CARD = TypeAdapter(QualityCard)

PROMPTS = tuple(conversation(f"the {w}") for w in ("road", "river", "house", "door", "train", "city", "bread", "field"))
SAMPLING = SamplingParams(max_tokens=24, temperature=1.0, seed=3)
STRENGTHS = (-1.0, -0.5, 0.5, 1.0, 1.5)


def asked_of(engine: LinearEngine, **changes: Any) -> DoseResponseRequest:
    request = DoseResponseRequest(
        planted_vector(engine), PROMPTS, neutral=PROMPTS[:2], strengths=STRENGTHS, layers=(2,), sampling=SAMPLING
    )
    return replace(request, **changes)


@pytest.fixture(scope="module")
def found() -> DoseResponseAnswer:
    """The dose-response of `asked_of` as it is."""
    engine = LinearEngine()
    return asyncio.run(dose_response(engine, asked_of(engine)))


def test_the_score_follows_the_strength_and_the_range_ends_where_text_breaks(found: DoseResponseAnswer) -> None:
    assert [point.strength for point in found.points] == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5]
    scores = [point.concept_score for point in found.points]
    assert scores[:5] == sorted(scores[:5])
    assert found.points[-1].perplexity_ratio > 1.5
    assert found.recommended.strength == (0.5, 1.0)
    assert found.recommended.layers == found.layers == (2,)
    assert found.recommended.negative == (-1.0, -0.5)
    assert found.recommended.basis == "measured"
    assert found.anti_steered == 0.0
    assert found.warnings == ()


async def test_every_number_follows_from_the_scores_of_the_answers(engine: LinearEngine) -> None:
    """Shift, chance and margin are computed anew from the rows that the client has."""
    request = asked_of(engine, strengths=(-0.5, 0.5, 1.0))
    found = DoseResponse.model_validate(json.loads((await dose_response(engine, request)).model_dump_json()))
    rows = found.items()
    assert len(rows) == len(PROMPTS) * (4 + 3 * (1 + request.random_directions))
    assert {row["sample"] for row in rows if row["arm"] == "unsteered"} == {0, 1, 2, 3}
    plain = [fmean(row["score"] for row in rows if row["arm"] == "unsteered" and row["prompt"] == i) for i in range(8)]

    def shifts_of(**place: Any) -> list[float]:
        own = [row for row in rows if place.items() <= row.items()]
        return [row["score"] - plain[row["prompt"]] for row in own]

    rows_of = {
        strength: [shifts_of(arm="random", strength=strength, direction=number) for number in range(8)]
        for strength in (-0.5, 0.5, 1.0)
    }
    means = {strength: [fmean(one) for one in row] for strength, row in rows_of.items()}
    bounds = chance(means, independent_claims({strength: np.array(row) for strength, row in rows_of.items()}))
    margins = []
    for point in found.points:
        if not point.strength:
            continue
        shifts = shifts_of(arm="steered", strength=point.strength)
        assert point.concept_score == pytest.approx(fmean(shifts))
        assert point.chance == pytest.approx(bounds[point.strength])
        along = [shift if point.strength > 0.0 else -shift for shift in shifts]
        margins.append(present(estimate(along).interval)[0] - bounds[point.strength])
    assert found.recommended.margin == pytest.approx(min(margins))


async def test_few_random_directions_or_none_are_named(engine: LinearEngine) -> None:
    short = asked_of(engine, strengths=(0.5,), sampling=SamplingParams(max_tokens=4, temperature=1.0))
    few = await dose_response(engine, replace(short, random_directions=2))
    assert "few random directions: 2; 8 or more are recommended" in few.warnings
    none = await dose_response(engine, replace(short, random_directions=0))
    assert "no random directions, so the shift is compared with 0" in none.warnings
    assert none.points[1].chance is None


def test_no_steering_is_the_reference(found: DoseResponseAnswer) -> None:
    zero = next(point for point in found.points if point.strength == 0.0)
    assert (zero.concept_score, zero.perplexity_ratio, zero.kl_neutral, zero.relative_dose) == (0.0, 1.0, 0.0, 0.0)


async def test_the_random_control_has_the_dose_and_not_the_effect(engine: LinearEngine) -> None:
    for point in (await dose_response(engine, asked_of(engine, random_directions=3))).points:
        assert abs(present(point.random_score)) < 0.25
        assert point.strength == 0.0 or abs(point.concept_score) > 2 * abs(present(point.random_score))


def test_dose_and_damage_grow_with_the_strength(found: DoseResponseAnswer) -> None:
    upward = [point for point in found.points if point.strength >= 0.0]
    for name in ("relative_dose", "kl_neutral"):
        values = [getattr(point, name) for point in upward]
        assert values == sorted(values)
        assert values[1] > 0.0


async def test_a_random_vector_earns_no_recommendation(engine: LinearEngine) -> None:
    """It may point a little along the concept by chance, and then it moves it; but no further than its peers do."""
    vector = planted_vector(engine)
    advised = 0
    for seed in (70, 77, 84):
        request = asked_of(engine, vector=random_like(vector, seed), reader=vector, strengths=(0.5, 1.0))
        found = await dose_response(engine, request)
        advised += found.recommended.strength is not None
        positive = [one for one in found.points if one.strength > 0.0]
        assert any(
            f"{verdict_without_proof(one.moves_on_average for one in positive)} at positive" in one
            for one in found.warnings
        )
    assert advised == 0


async def test_recommended_ranges_of_other_seeds_overlap(engine: LinearEngine) -> None:
    """Noise of sampling and other random directions move the ends of a range, but not the range."""
    ranges = []
    for seed in range(6):
        request = asked_of(
            engine, sampling=replace(SAMPLING, seed=seed), strengths=(0.5, 1.0, 1.5), random_directions=4
        )
        ranges.append((await dose_response(engine, request)).recommended.strength)
    for strength in (0.5, 1.0):
        held = sum(found is not None and found[0] <= strength <= found[1] for found in ranges)
        if held >= 5:
            return
    raise AssertionError(f"no strength is in 5 of the 6 ranges {ranges}")


def test_evidence_goes_on_the_card_and_survives_json(engine: LinearEngine, found: DoseResponseAnswer) -> None:
    vector = planted_vector(engine)
    proved = with_evidence(vector, found)
    assert proved.recommended == found.recommended
    stored = present(present(proved.quality).dose_response)
    assert [asdict(point) for point in stored] == [
        {name: value for name, value in asdict(point).items() if name != "advantage"} for point in found.points
    ]
    assert CARD.validate_python(json.loads(json.dumps(present(proved.quality).to_dict()))) == present(proved.quality)


def test_newer_evidence_takes_the_place_of_the_warnings_of_older(
    engine: LinearEngine, found: DoseResponseAnswer
) -> None:
    """Those of the extraction stay, also where an evaluation says the same."""
    said, stale, fresh = "few pairs", "no random directions, so the shift is compared with 0", "another"
    card = QualityCard(pairs=3, holdout=1, layers={}, warnings=(said,))
    older = with_evidence(
        replace(planted_vector(engine), quality=card), found.model_copy(update={"warnings": (stale, said)})
    )
    assert present(older.quality).warnings == (said, stale)
    stored = replace(older, provenance=json.loads(json.dumps(older.provenance)))
    newer = with_evidence(stored, found.model_copy(update={"warnings": (fresh,)}))
    assert present(newer.quality).warnings == (said, fresh)
    assert newer.provenance["evaluation_warnings"] == [fresh]
    odd = with_evidence(replace(older, provenance={"evaluation_warnings": 5}), found)
    assert present(odd.quality).warnings == (said, stale, *found.warnings)


async def test_a_strength_out_of_range_is_left_out_and_named() -> None:
    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        added = change_at(request.plan, 2) if request.plan.layers else None
        return NonfiniteActivations("no") if added is not None and added.norm() > 1.25 * GAIN else None

    engine = LinearEngine(fails=fails)
    found = await dose_response(engine, asked_of(engine))
    assert [point.strength for point in found.points] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert "left out, because activations became non-finite: strength 1.5" in found.warnings


async def test_a_strength_that_breaks_neutral_text_alone_is_left_out_and_named() -> None:
    engine, said = BreakingReads(1.25), "left out, because activations became non-finite: "
    found = await dose_response(engine, asked_of(engine))
    assert [point.strength for point in found.points] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert said + "strength 1.5" in found.warnings
    sweep = LayerSweepRequest(planted_vector(engine), PROMPTS * 2, layers=(2,), strengths=(0.5, 1.5), sampling=SAMPLING)
    layers = await layer_sweep(engine, sweep)
    assert [point.strength for point in layers.points] == [0.5, 0.5]
    assert said + "layer 2 at 1.5" in layers.warnings


def breaks_between(low: float, high: float) -> LinearEngine:
    """An engine whose activations become non-finite where more than `low` and less than `high` natural scales are added."""

    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        added = change_at(request.plan, 2).norm() / GAIN if request.plan.layers else 0.0
        return NonfiniteActivations("no") if low < added < high else None

    return LinearEngine(fails=fails)


async def test_a_range_does_not_reach_over_a_strength_out_of_range() -> None:
    engine = breaks_between(0.6, 0.9)
    found = await dose_response(engine, asked_of(engine, strengths=(0.4, 0.5, 0.75, 1.0)))
    assert {point.strength: point.margin is not None for point in found.points[1:]} == dict.fromkeys(
        (0.4, 0.5, 1.0), True
    )
    assert found.recommended.strength == (0.4, 0.5)
    sweep = LayerSweepRequest(
        planted_vector(engine), PROMPTS * 2, layers=(2,), strengths=(0.4, 0.5, 0.75, 1.0), sampling=SAMPLING
    )
    assert present((await layer_sweep(engine, sweep)).recommended).strength == (0.4, 0.5)


SHORT = SamplingParams(max_tokens=8, temperature=1.0, seed=3)


async def test_a_strength_at_which_some_random_directions_break_is_compared_with_the_others() -> None:
    engine = breaking_controls(0.7, lambda along: along > 0.0)
    found = await dose_response(engine, asked_of(engine, strengths=(0.5, 1.0), sampling=SHORT))
    assert [point.strength for point in found.points] == [0.0, 0.5, 1.0]
    assert all(point.chance is not None and point.advantage is not None for point in found.points[1:])
    assert any("do not count for chance: strength 1" in warning for warning in found.warnings)


async def test_a_strength_at_which_all_random_directions_break_is_shown_and_not_recommended() -> None:
    engine = breaking_controls(0.7)
    found = await dose_response(engine, asked_of(engine, strengths=(0.5, 1.0)))
    assert [(point.strength, point.chance is None) for point in found.points[1:]] == [(0.5, False), (1.0, True)]
    assert present(found.points[-1].concept_interval)[0] > 0.0, "it would hold if it were compared with 0"
    assert (found.points[-1].margin, found.points[-1].advantage) == (None, None)
    assert found.recommended.strength == (0.5, 0.5)
    (warning,) = [one for one in found.warnings if "chance is not known" in one]
    assert warning.endswith(": strength 1")


async def test_answers_replay(engine: LinearEngine, found: DoseResponseAnswer) -> None:
    assert await dose_response(engine, asked_of(engine)) == found


async def test_progress_runs_to_its_total(engine: LinearEngine) -> None:
    seen = []
    request = asked_of(engine, sampling=SamplingParams(max_tokens=4, temperature=1.0))
    await dose_response(engine, request, progress=lambda *message: seen.append(message))
    done = [one[0] for one in seen]
    assert done == sorted(done)
    assert len({one[1] for one in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("moment", [50, 500])
async def test_cancelling_leaves_no_row(engine: LinearEngine, moment: int) -> None:
    """Once while answers are written, once while they are read."""
    short = asked_of(engine, sampling=SamplingParams(max_tokens=2, temperature=1.0))
    task = asyncio.ensure_future(dose_response(engine, short))
    await engine.reached(moment)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": (0.0,)}, "other than 0"),
        ({"layers": (0,)}, "no direction at layers"),
        ({"reading_layer": 0}, "no direction at layer 0"),
        ({"scorer": "judge"}, "unknown scorer 'judge'"),
        ({"scorer": "probe"}, "has no probe at layer 2"),
    ],
)
async def test_evaluations_that_cannot_be(engine: LinearEngine, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await dose_response(engine, asked_of(engine, **change))
    assert engine.generated == 0


async def test_another_models_vector_is_refused(engine: LinearEngine) -> None:
    with pytest.raises(VectorModelMismatch):
        await dose_response(engine, asked_of(engine, vector=replace(planted_vector(engine), model_fingerprint="other")))


def test_text_is_read_where_the_card_reads_best(engine: LinearEngine) -> None:
    vector = planted_vector(engine)
    assert reading_layer(vector, 4) == vector.recommended_layers()[0]
    card = QualityCard(4, 2, {1: LayerQuality(auroc=0.95), 2: LayerQuality(auroc=0.6)})
    assert reading_layer(replace(vector, quality=card), 4) == 1


def test_prompts_become_messages_or_a_transcript_without_a_template() -> None:
    assert as_prompts(LinearEngine(), ["the road"]) == (conversation("the road"),)
    assert as_prompts(LinearEngine(chat_template=False), ["the road"]) == ("User: the road\n\nAssistant:",)
