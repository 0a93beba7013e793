"""Training hands the engine the pairs that are not held out, and makes an ordinary vector of what comes back."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerFast

from steering.cards import QualityCard
from steering.engine.api import FitTask, FittedDirection, TrainingSettings
from steering.errors import InvalidRequest
from steering.pairs import PairSet, dataset_digest, split
from steering.workflows.extract import TRAINED, ExtractionRequest, extract, train
from steering.workflows.texts import NEUTRAL, neutral_texts, token_pairs
from tests.engines import family_engine
from tests.narrowing import present
from tests.steering.workflows.linear import LAYERS, PLANTED_LAYERS, LinearEngine
from tests.steering.workflows.texts import conversation, planted_pairs

CARD = TypeAdapter(QualityCard)

SETTINGS = TrainingSettings(steps=5, batch=2)
Turn = Callable[[FitTask], torch.Tensor]


class TrainableEngine(LinearEngine):
    """A LinearEngine that answers a task with `turn(task)` and notes what it was asked."""

    def __init__(self, turn: Turn | None = None) -> None:
        super().__init__()
        self.tasks: list[FitTask] = []
        self._turn = turn or (lambda task: self.concept)

    async def fit(self, task: FitTask, *, progress: Callable[[int, int], None] | None = None) -> FittedDirection:
        self.tasks.append(task)
        for step in range(task.steps):
            await asyncio.sleep(0)
            if progress is not None:
                progress(step + 1, task.steps)
        return FittedDirection(self._turn(task), tuple(1.0 - 0.1 * step for step in range(task.steps)))


@pytest.fixture
def engine() -> TrainableEngine:
    return TrainableEngine()


@pytest.fixture
def request_() -> ExtractionRequest:
    return ExtractionRequest("sentiment", planted_pairs(), position="mean", description="good against bad", tags=("t",))


async def test_the_vector_is_what_the_engine_fitted_at_the_best_layer(
    engine: TrainableEngine, request_: ExtractionRequest
) -> None:
    vector = await train(engine, request_, SETTINGS)
    (layer,) = vector.layers
    assert layer in PLANTED_LAYERS
    assert present(vector.recommended).layers == (layer,)
    assert vector.method == TRAINED
    assert (vector.description, vector.tags) == ("good against bad", ("t",))
    torch.testing.assert_close(vector.at(layer).direction, engine.concept)
    assert present(vector.quality).layers[layer].auroc == 1.0
    assert [task.layer for task in engine.tasks] == [layer]


async def test_natural_scale_comes_from_the_class_means_and_strengths_from_the_training(
    engine: TrainableEngine, request_: ExtractionRequest
) -> None:
    vector = await train(engine, replace(request_, pairs=planted_pairs(60, 20)), SETTINGS)
    (task,) = engine.tasks
    (layer,) = vector.layers
    entry = vector.at(layer)
    assert not present(vector.quality).at_chance, present(vector.quality)
    assert entry.scale == pytest.approx(present(entry.positive_mean) - present(entry.negative_mean), rel=1e-4)
    amounts = [strength * entry.scale for strength in present(present(vector.recommended).strengths_to_try)]
    assert amounts == pytest.approx([strength * task.amount for strength in SETTINGS.strengths])
    assert (present(vector.recommended).strength, present(vector.recommended).basis) == (None, "card")


async def test_only_fitted_pairs_are_trained_on_from_where_their_texts_differ(
    engine: TrainableEngine, request_: ExtractionRequest
) -> None:
    await train(engine, request_, SETTINGS)
    division = split(request_.pairs, request_.holdout, request_.seed)
    (task,) = engine.tasks
    assert task.pairs == token_pairs(engine, request_.pairs, division.fit_positive)
    assert len(task.pairs) == len(division.fit_positive) < len(request_.pairs)
    assert (task.steps, task.batch, task.strengths, task.seed) == (5, 2, SETTINGS.strengths, request_.seed)


async def test_pairs_that_cannot_be_trained_on_are_counted_on_the_card(
    engine: TrainableEngine, request_: ExtractionRequest
) -> None:
    pairs = request_.pairs
    chosen = split(pairs, request_.holdout, request_.seed).fit_positive
    equal = tuple(pairs.positive[i] if i == chosen[0] else text for i, text in enumerate(pairs.negative))
    notes = [
        [one for one in present((await train(engine, request, SETTINGS)).quality).warnings if "left out" in one]
        for request in (request_, replace(request_, pairs=replace(pairs, negative=equal)))
    ]
    reason = "left out of the training, because the two texts are equal to the model or one token long"
    assert notes == [[], [f"{reason}: 1 of {len(chosen)} pairs"]]


async def test_it_starts_from_the_mean_difference_of_the_fitted_part(
    engine: TrainableEngine, request_: ExtractionRequest
) -> None:
    chosen = split(request_.pairs, request_.holdout, request_.seed).fit_positive
    pairs = request_.pairs
    part = PairSet(tuple(pairs.positive[i] for i in chosen), tuple(pairs.negative[i] for i in chosen))
    base = await extract(LinearEngine(), replace(request_, pairs=part))
    await train(engine, request_, SETTINGS)
    (task,) = engine.tasks
    torch.testing.assert_close(task.initial, base.at(task.layer).direction)
    assert task.amount == pytest.approx(base.at(task.layer).scale)


async def test_named_layers_are_trained_one_after_the_other(
    engine: TrainableEngine, request_: ExtractionRequest
) -> None:
    vector = await train(engine, replace(request_, layers=(1, 2)), SETTINGS)
    assert [task.layer for task in engine.tasks] == [1, 2]
    assert sorted(vector.layers) == [1, 2]


async def test_provenance_tells_how_it_was_trained(engine: TrainableEngine, request_: ExtractionRequest) -> None:
    vector = await train(engine, request_, SETTINGS)
    message = json.loads(json.dumps(vector.provenance))
    assert (message["method"], message["dataset"]) == (TRAINED, dataset_digest(request_.pairs))
    training = message["training"]
    assert (training["steps"], training["strengths"]) == (5, list(SETTINGS.strengths))
    assert training["kl_coefficient"] == SETTINGS.kl_coefficient
    assert training["loss"] == {str(engine.tasks[0].layer): [1.0, pytest.approx(0.6)]}
    assert CARD.validate_python(json.loads(json.dumps(present(vector.quality).to_dict()))) == present(vector.quality)


async def test_a_direction_that_reads_the_wrong_way_round_is_refused(request_: ExtractionRequest) -> None:
    engine = TrainableEngine()
    with pytest.raises(InvalidRequest, match="reads the poles reversed"):
        await train(TrainableEngine(lambda task: -engine.concept), request_, SETTINGS)


@pytest.mark.parametrize(("kl_coefficient", "spared"), [(0.0, 0), (2.5, NEUTRAL)])
async def test_neutral_answers_are_spared_unless_kl_coefficient_is_0(
    engine: TrainableEngine, request_: ExtractionRequest, kl_coefficient: float, spared: int
) -> None:
    await train(engine, request_, replace(SETTINGS, kl_coefficient=kl_coefficient))
    (task,) = engine.tasks
    assert (len(task.neutral), task.kl_coefficient) == (spared, kl_coefficient)
    assert task.neutral == (await neutral_texts(LinearEngine(), request_.seed))[:spared]


async def test_conversations_share_their_question(engine: TrainableEngine) -> None:
    pairs = PairSet(
        tuple(conversation("the road", f"{word} day") for word in ("lovely", "warm", "glad", "kind")),
        tuple(conversation("the road", f"{word} day") for word in ("grim", "cold", "sad", "cruel")),
    )
    await train(engine, ExtractionRequest("answers", pairs, position="response_mean", layers=(1,)), SETTINGS)
    assert {pair.start for pair in engine.tasks[0].pairs} == {5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (0, 4)}, "layer 4 does not exist; the model has layers 0 to 3"),
        ({"position": "all"}, "many activations"),
        ({"holdout": 1.0}, "holdout"),
        ({"name": "Not A Name"}, "is not a name"),
        ({"pairs": PairSet(("a road",), ("cold", "grim"), paired=False)}, "needs pairs"),
    ],
)
async def test_invalid_requests_are_refused_before_anything_is_read(
    engine: TrainableEngine, request_: ExtractionRequest, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await train(engine, replace(request_, **change), SETTINGS)
    assert engine.captured == 0
    assert engine.tasks == []


async def test_equal_texts_are_refused(engine: TrainableEngine) -> None:
    same = PairSet(("the road", "a river"), ("the road", "a river"))
    with pytest.raises(InvalidRequest, match="no direction stands out"):
        await train(engine, ExtractionRequest("nothing", same, holdout=0.0), SETTINGS)


@pytest.mark.parametrize("layers", ["all", (1, 2)])
async def test_progress_runs_to_its_total(
    engine: TrainableEngine, request_: ExtractionRequest, layers: Literal["all"] | tuple[int, ...]
) -> None:
    seen = []
    await train(engine, replace(request_, layers=layers), SETTINGS, progress=lambda *message: seen.append(message))
    read, trained = (LAYERS, 1) if layers == "all" else (2, 2)
    total = 48 + read + SETTINGS.steps * trained
    done = [one[0] for one in seen]
    assert done == sorted(done)
    assert seen[-1][:2] == (total, total)
    assert {one[1] for one in seen} == {total}
    assert any(message.startswith("training layer") for _, _, message in seen)


async def test_cancelling_stops_the_fit(engine: TrainableEngine, request_: ExtractionRequest) -> None:
    steps = []

    def watch(done: int, total: int, message: str) -> None:
        if message.startswith("training"):
            steps.append(done)
            if len(steps) == 3:
                task.cancel()

    task = asyncio.ensure_future(train(engine, request_, SETTINGS, progress=watch))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(steps) == 3


async def test_on_a_model_the_whole_way(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """A tiny random model: what comes out is a vector of one layer with a card, made the same way twice.

    Rounding depends on which prompts share a pass, so the directions are equal to 1e-5."""
    frames = ("the road is", "a river was", "her letter seems", "the old train looks", "this bread is", "the city was")
    pairs = PairSet(tuple(f"{f} warm" for f in frames), tuple(f"{f} cold" for f in frames), tuple("aabbcc"))
    request = ExtractionRequest("warmth", pairs, position="last", layers=(1,), holdout=0.3)
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        first, second = [await train(engine, request, TrainingSettings(steps=8, batch=2)) for _ in range(2)]
    torch.testing.assert_close(first.at(1).direction, second.at(1).direction, rtol=0.0, atol=1e-5)
    assert present(first.quality).holdout == 2
    assert 0.0 < first.provenance["training"]["cosine_to_start"]["1"] < 1.0
