"""The effect of a transfer: a carried direction that is the planted one steers as far as it, one across it does not."""

from dataclasses import replace

import pytest
import torch

from steering.engine.api import GenerationRequest, SamplingParams
from steering.errors import InvalidRequest, NonfiniteActivations
from steering.quality import Recommended
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.evaluation.trials import UNSTEERED_SAMPLES
from steering.workflows.transfer.effect import RANDOM_DIRECTIONS, EffectRequest, effect, effect_answers
from steering.workflows.transfer.request import Transfer
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
    return Transfer(vector, planted.at(LAYER), "second", 1, LAYER, 300, 0.8, 0.1, 0.6, None, None, None, None)


def across(engine: LinearEngine) -> torch.Tensor:
    noise = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(7))
    noise -= (noise @ engine.concept) * engine.concept
    return noise / float(noise.norm())


async def test_the_planted_direction_steers_as_far_as_the_native_one_whatever_its_scale(engine: LinearEngine) -> None:
    """Every vector adds the same length, so another natural scale changes nothing."""
    found = await effect(engine, carried(engine, engine.concept, scale=GAIN / 3), REQUEST)
    assert found.native is not None
    assert found.transferred is not None
    assert found.random is not None
    assert found.transferred.mean == pytest.approx(found.native.mean)
    assert found.native.interval is not None
    assert found.native.interval[0] > 0.0
    assert abs(found.random.mean) < found.native.mean / 3


async def test_no_logits_are_read_for_a_shift(engine: LinearEngine) -> None:
    await effect(engine, carried(engine, engine.concept), REQUEST)
    assert engine.capture_calls
    assert not any(spec.logits for _, spec in engine.capture_calls)


async def test_a_direction_across_the_planted_one_shows_no_effect(engine: LinearEngine) -> None:
    found = await effect(engine, carried(engine, across(engine)), REQUEST)
    assert found.transferred is not None
    assert found.native is not None
    assert abs(found.transferred.mean) < found.native.mean / 3
    assert found.transferred.interval is not None
    assert found.transferred.interval[1] < found.native.mean


async def test_a_named_native_vector_shares_the_dose_over_its_recommended_layers(engine: LinearEngine) -> None:
    """Layers 1 and 2 of the planted vector add up to what layer 2 adds alone; its opposite moves the other way."""
    alone = await effect(engine, carried(engine, engine.concept), REQUEST)
    named = replace(planted_vector(engine), recommended=Recommended((1, 2)))
    found = await effect(engine, carried(engine, engine.concept), replace(REQUEST, native=named))
    assert found.native is not None
    assert alone.native is not None
    assert found.native.mean == pytest.approx(alone.native.mean)
    found = await effect(engine, carried(engine, engine.concept), replace(REQUEST, native=_opposite(named)))
    assert found.native is not None
    assert found.native.mean < 0.0
    assert found.transferred == alone.transferred


def _opposite(vector: ConceptVector) -> ConceptVector:
    return replace(
        vector, layers={at: LayerDirection(-one.direction, scale=one.scale) for at, one in vector.layers.items()}
    )


async def test_it_writes_as_many_answers_as_it_says(engine: LinearEngine) -> None:
    await effect(engine, carried(engine, engine.concept), REQUEST)
    assert engine.generated == effect_answers(len(PROMPTS)) * SAMPLING.max_tokens
    assert effect_answers(len(PROMPTS)) == (UNSTEERED_SAMPLES + 2 + RANDOM_DIRECTIONS) * len(PROMPTS)


async def test_a_vector_that_drives_the_numbers_out_of_range_has_no_shift(engine: LinearEngine) -> None:
    def fails(request: GenerationRequest, _: int) -> NonfiniteActivations | None:
        others = [one.spec.vector for one in request.plan.interventions if not one.spec.vector.startswith("sentiment")]
        return NonfiniteActivations("out of range") if others else None

    broken = LinearEngine(fails=fails)
    broken.info = engine.info
    found = await effect(broken, carried(broken, broken.concept), replace(REQUEST, native=planted_vector(broken)))
    assert found.transferred is None
    assert found.random is None
    assert found.native is not None


async def test_a_dose_needs_the_typical_norms(engine: LinearEngine) -> None:
    engine.info = replace(engine.info, typical_norms=())
    with pytest.raises(InvalidRequest, match="typical norms of the model, which were not measured"):
        await effect(engine, carried(engine, engine.concept), REQUEST)
