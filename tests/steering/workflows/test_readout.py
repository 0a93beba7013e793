"""Readouts: every token's score is the one that was planted."""

from dataclasses import replace

import pytest

from steering.errors import InvalidRequest, VectorModelMismatch
from steering.workflows import readout as workflow
from steering.workflows.readout import parts, readout
from tests.steering.workflows.linear import D_MODEL, LinearEngine
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector


async def test_scores_are_the_planted_levels(engine: LinearEngine) -> None:
    """After block 1 the level is the mean polarity so far, and kappa is GAIN, so the score is that mean."""
    (found,) = await readout(engine, ("lovely road grim grim",), {"mood": planted_vector(engine)}, layers=(1, 2))
    assert [one.text for one in found.tokens] == ["<s>", "lovely", "road", "grim", "grim"]
    assert list(found.readout["mood"]) == ["1", "2"]
    expected = (0.0, 1 / 2, 1 / 3, 0.0, -1 / 5)
    for one in found.readout["mood"].values():
        assert one.scores == pytest.approx(expected, abs=1e-5)
        assert one.mean == pytest.approx(sum(expected[1:]) / 4, abs=1e-5)
        assert one.max == pytest.approx(1 / 2, abs=1e-5)
        assert one.last == pytest.approx(-1 / 5, abs=1e-5)


async def test_the_first_position_counts_only_where_it_is_all_there_is(engine: LinearEngine) -> None:
    found = await readout(engine, ((7,), (7, 20)), {"mood": planted_vector(engine)}, layers=(1,))
    alone, two = (one.readout["mood"]["1"] for one in found)
    assert alone.mean == alone.scores[0] == pytest.approx(1.0, abs=1e-5)
    assert two.max == two.scores[1] == pytest.approx(0.5, abs=1e-5)


async def test_recommended_layers_are_the_default(engine: LinearEngine) -> None:
    vector = planted_vector(engine)
    (found,) = await readout(engine, (conversation("the road"),), {"mood": vector})
    assert list(found.readout["mood"]) == [str(layer) for layer in vector.recommended_layers()]


async def test_all_layers_of_two_vectors_come_from_one_pass(engine: LinearEngine) -> None:
    vectors = {"mood": planted_vector(engine), "other": planted_vector(engine, "other")}
    (found,) = await readout(engine, ("lovely road",), vectors, layers="all")
    assert {name: list(layers) for name, layers in found.readout.items()} == {name: ["1", "2", "3"] for name in vectors}
    assert [(count, spec.layers) for count, spec in engine.capture_calls] == [(1, (1, 2, 3))]


async def test_many_texts_are_read_in_parts_and_stay_in_order(engine: LinearEngine) -> None:
    texts = tuple(f"lovely {'road ' * (i * 10_000)}" for i in range(6))
    held = list(parts(engine, texts, layers=20))
    assert [text for part in held for text in part] == list(texts)
    assert len(held) > 1
    sizes = [sum(len(engine.tokenizer.encode(text)) for text in part) * 20 * D_MODEL for part in held]
    bounds = [size <= workflow.ACTIVATIONS_BOUND or len(part) == 1 for size, part in zip(sizes, held, strict=True)]
    assert all(bounds)


async def test_readouts_that_cannot_be(engine: LinearEngine) -> None:
    vector = planted_vector(engine)
    with pytest.raises(InvalidRequest, match="no direction at layers"):
        await readout(engine, ("a",), {"mood": vector}, layers=(0,))
    with pytest.raises(VectorModelMismatch):
        await readout(LinearEngine(), ("a",), {"mood": replace(vector, model_fingerprint="other")})
    assert engine.captured == 0
