"""The logit lens: predictions that are known by heart, and a tiny model's own at the last layer."""

import math
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch

from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.transformers.engine import TransformersEngine
from steering.errors import InvalidRequest
from steering.lab.controls import plan_at
from steering.model.loading import LoadedModel
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows import logprobs as workflow
from steering.workflows.generate import answer
from steering.workflows.logprobs import logit_lens
from tests.families import FAMILIES
from tests.narrowing import present
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.linear_tokenizer import NEGATIVE, POSITIVE, WORDS
from tests.steering.workflows.vectors import planted_vector


async def test_the_concept_is_seen_to_arrive_at_the_layer_that_writes_it(engine: LinearEngine) -> None:
    found = await logit_lens(engine, "the lovely", layers=(0, 1), top_k=len(POSITIVE))
    before, after = found
    assert (before.layer, after.layer) == (0, 1)
    assert [one.logprob for one in before.plain[2]] == pytest.approx([-math.log(len(WORDS))] * len(POSITIVE), abs=1e-3)
    assert len(after.plain) == len(engine.tokenizer.encode("the lovely"))
    assert {one.text for one in after.plain[2]} == set(POSITIVE)
    assert after.steered is None


async def test_steering_is_seen_from_its_layer_on(engine: LinearEngine) -> None:
    plan = await plan_at(engine.info, planted_vector(engine), -3.0, (2,))
    found = await logit_lens(engine, "the lovely", plan, top_k=len(NEGATIVE))
    assert found[1].steered == found[1].plain
    assert {one.text for one in present(found[2].steered)[2]} == set(NEGATIVE)
    assert {one.text for one in found[2].plain[2]} == set(POSITIVE)


async def test_rows_are_best_first_and_probabilities_sum_to_one(engine: LinearEngine) -> None:
    found = await logit_lens(engine, "the grim", layers=(1,), top_k=len(WORDS))
    for row in found[0].plain:
        logprobs = [one.logprob for one in row]
        assert logprobs == sorted(logprobs, reverse=True)
        assert float(torch.tensor(logprobs).exp().sum()) == pytest.approx(1.0, abs=1e-4)


async def test_lenses_that_cannot_be(engine: LinearEngine) -> None:
    with pytest.raises(InvalidRequest, match="layer 4 does not exist"):
        await logit_lens(engine, "a", layers=(4,))
    for wrong in (0, len(WORDS) + 1):
        with pytest.raises(InvalidRequest, match="top_k must be"):
            await logit_lens(engine, "a", top_k=wrong)
    assert engine.captured == 0


@pytest.fixture
async def tiny(tiny_loaded: LoadedModel) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(tiny_loaded)
    yield engine
    await engine.close()


async def test_the_last_layer_is_the_model_itself(tiny: TransformersEngine) -> None:
    found = await logit_lens(tiny, "Hello there", layers=(-1,), top_k=3)
    with torch.no_grad():
        logits = FAMILIES["llama"]()(torch.tensor([tiny.tokenizer.encode("Hello there")])).logits[0]
    expected = logits.log_softmax(1).topk(3, dim=1)
    assert [[one.id for one in row] for row in found[0].plain] == expected.indices.tolist()
    assert [[one.logprob for one in row] for row in found[0].plain] == pytest.approx(
        [pytest.approx(row, abs=1e-4) for row in expected.values.tolist()]
    )


def any_vector(engine: TransformersEngine) -> ConceptVector:
    """A random direction of the tiny model as a vector."""
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(2)), dim=0)
    info = engine.info
    return ConceptVector("any", info.name, info.fingerprint, 32, "given", {1: LayerDirection(direction, scale=3.0)})


async def test_the_steered_last_layer_predicts_the_steered_answer(tiny: TransformersEngine) -> None:
    vector = any_vector(tiny)
    plan = await plan_at(tiny.info, vector, 6.0, (1,))
    found = await logit_lens(tiny, "Hello there", plan, layers=(-1,), top_k=1)
    request = GenerationRequest("Hello there", SamplingParams(max_tokens=1, ignore_eos=True), plan)
    assert present(found[0].steered)[-1][0].id == (await answer(tiny, request)).tokens[0]
    assert present(found[0].steered)[-1] != found[0].plain[-1]


async def test_long_readings_are_unembedded_in_parts(engine: LinearEngine) -> None:
    """With a vocabulary so large that two rows of it would not fit, every position is a part of its own."""
    whole = await logit_lens(engine, "the lovely road", layers=(1, 2), top_k=2)
    engine.info = replace(engine.info, vocab_size=workflow.LOGITS_BOUND)
    parts = await logit_lens(engine, "the lovely road", layers=(1, 2), top_k=2)
    found, expected = ([one for layer in read for row in layer.plain for one in row] for read in (parts, whole))
    assert [one.id for one in found] == [one.id for one in expected]
    # a product of one row may be summed in another order than one of four
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-5)
    assert engine.unembedded == [4, 4, 1, 1, 1, 1, 1, 1, 1, 1]
