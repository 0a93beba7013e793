"""The effect of a transfer: a carried direction that is the planted one steers as far as it, one across it does not."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from steering.cards import Recommended
from steering.engine.api import GenerationRequest, SamplingParams
from steering.errors import InvalidRequest, NonfiniteActivations
from steering.lab.controls import TRANSFER, random_arms
from steering.lab.transfer import EffectRequest, Transfer, effect, effect_answers
from steering.lab.trials import CONTROLS, UNSTEERED_SAMPLES, chance
from steering.vectors import ConceptVector, LayerDirection
from tests.steering.workflows.linear import D_MODEL, GAIN, LAYERS, LinearEngine
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector

PROMPTS = tuple(conversation(f"the {word}") for word in ("road", "river", "house", "door", "train", "city", "bread"))
SAMPLING = SamplingParams(max_tokens=24, temperature=1.0, seed=3)
REQUEST = EffectRequest(PROMPTS, SAMPLING, relative_dose=0.5)
LAYER = 2


@pytest.fixture
def engine() -> LinearEngine:
    """Typical norms so that a relative dose of 0.5 is half a natural scale at the layer."""
    engine = LinearEngine()
    engine.info = replace(engine.info, typical_norms=(GAIN,) * LAYERS)
    return engine


def carried(engine: LinearEngine, direction: torch.Tensor, scale: float = GAIN) -> Transfer:
    """A transfer to LAYER whose pairs give the planted direction there."""
    planted = planted_vector(engine)
    vector = replace(planted, name="mood", method="transferred", layers={LAYER: LayerDirection(direction, scale=scale)})
    return Transfer(vector, planted.at(LAYER), "second", 1, LAYER, 300, 0.8, 0.6, {})


def across(engine: LinearEngine) -> torch.Tensor:
    noise = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(7))
    noise -= (noise @ engine.concept) * engine.concept
    return noise / float(noise.norm())


async def test_the_planted_direction_steers_as_far_as_the_native_one_whatever_its_scale(engine: LinearEngine) -> None:
    """Every vector adds the same length, so another natural scale changes nothing."""
    found = await effect(engine, carried(engine, engine.concept, scale=GAIN / 3), REQUEST)
    assert found.shift["native"] is not None
    assert found.shift["transferred"] is not None
    assert found.chance is not None
    assert found.shift["transferred"].mean == pytest.approx(found.shift["native"].mean)
    assert found.shift["native"].interval is not None
    assert 0.0 < found.chance < found.shift["native"].interval[0]


async def test_chance_is_the_bound_of_random_directions_whichever_side_they_move_answers_to(
    engine: LinearEngine,
) -> None:
    """Each of them is also measured as if it were the native vector, with the same noise; at a dose that makes each side plain."""
    strong = replace(REQUEST, relative_dose=6.0)
    found = await effect(engine, carried(engine, engine.concept), strong)
    fitted = replace(planted_vector(engine), layers={LAYER: planted_vector(engine).at(LAYER)})
    moved = []
    for drawn in random_arms(fitted, SAMPLING.seed, TRANSFER, CONTROLS):
        one = replace(drawn, recommended=Recommended((LAYER,)))
        alone = (await effect(engine, carried(engine, engine.concept), replace(strong, native=one))).shift["native"]
        assert alone is not None
        moved.append(alone.mean)
    assert min(moved) < 0.0 < max(moved)
    assert found.chance == pytest.approx(chance({1.0: moved})[1.0])


async def test_a_shift_is_the_mean_of_the_scores_it_returns(engine: LinearEngine) -> None:
    found = await effect(engine, carried(engine, engine.concept), REQUEST)
    unsteered, *steered = found.scores
    assert unsteered.arm == "unsteered"
    assert [one.vector for one in steered[:2]] == ["native", "transferred"]
    assert [one.direction for one in steered[2:]] == list(range(CONTROLS))
    before = [fmean(row) for row in unsteered.scores]
    for one in steered[:2]:
        moved = [fmean(row) - old for row, old in zip(one.scores, before, strict=True)]
        shift = found.shift[one.vector or ""]
        assert shift is not None
        assert fmean(moved) == pytest.approx(shift.mean)


async def test_no_logits_are_read_for_a_shift(engine: LinearEngine) -> None:
    await effect(engine, carried(engine, engine.concept), REQUEST)
    assert engine.capture_calls
    assert not any(spec.logits for _, spec in engine.capture_calls)


async def test_a_direction_across_the_planted_one_shows_no_effect(engine: LinearEngine) -> None:
    found = await effect(engine, carried(engine, across(engine)), REQUEST)
    assert found.shift["transferred"] is not None
    assert found.shift["native"] is not None
    assert abs(found.shift["transferred"].mean) < found.shift["native"].mean / 3
    assert found.shift["transferred"].interval is not None
    assert found.shift["transferred"].interval[1] < found.shift["native"].mean


async def test_a_named_native_vector_shares_the_dose_over_its_recommended_layers(engine: LinearEngine) -> None:
    """Layers 1 and 2 of the planted vector add up to what layer 2 adds alone; its opposite moves the other way."""
    alone = await effect(engine, carried(engine, engine.concept), REQUEST)
    named = replace(planted_vector(engine), recommended=Recommended((1, 2)))
    found = await effect(engine, carried(engine, engine.concept), replace(REQUEST, native=named))
    assert found.shift["native"] is not None
    assert alone.shift["native"] is not None
    assert found.shift["native"].mean == pytest.approx(alone.shift["native"].mean)
    found = await effect(engine, carried(engine, engine.concept), replace(REQUEST, native=_opposite(named)))
    assert found.shift["native"] is not None
    assert found.shift["native"].mean < 0.0
    assert found.shift["transferred"] == alone.shift["transferred"]


def _opposite(vector: ConceptVector) -> ConceptVector:
    return replace(
        vector, layers={at: LayerDirection(-one.direction, scale=one.scale) for at, one in vector.layers.items()}
    )


async def test_it_writes_as_many_answers_as_it_says(engine: LinearEngine) -> None:
    await effect(engine, carried(engine, engine.concept), REQUEST)
    assert engine.generated == effect_answers(len(PROMPTS)) * SAMPLING.max_tokens
    assert effect_answers(len(PROMPTS)) == (UNSTEERED_SAMPLES + 2 + CONTROLS) * len(PROMPTS)


async def test_a_vector_that_drives_the_numbers_out_of_range_has_no_shift(engine: LinearEngine) -> None:
    def fails(request: GenerationRequest, _: int) -> NonfiniteActivations | None:
        others = [one.spec.vector for one in request.plan.interventions if not one.spec.vector.startswith("sentiment")]
        return NonfiniteActivations("out of range") if others else None

    broken = LinearEngine(fails=fails)
    broken.info = engine.info
    found = await effect(broken, carried(broken, broken.concept), replace(REQUEST, native=planted_vector(broken)))
    assert found.shift["transferred"] is None
    assert found.chance is None
    assert found.shift["native"] is not None


async def test_a_dose_needs_the_typical_norms(engine: LinearEngine) -> None:
    engine.info = replace(engine.info, typical_norms=())
    with pytest.raises(InvalidRequest, match="typical norms of the model, which were not measured"):
        await effect(engine, carried(engine, engine.concept), REQUEST)
