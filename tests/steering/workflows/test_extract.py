"""Extraction finds the planted direction, proves it on topics it has not seen, and says what it could not find."""

import asyncio
import json
import random
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from steering.cards import QualityCard
from steering.errors import InvalidRequest
from steering.extraction import METHODS
from steering.extraction.base import Groups, MeanDifference, Negatives, Positives
from steering.layer_indices import layer_indices
from steering.maps import LowRankMap
from steering.pairs import PairSet, dataset_digest
from steering.schemas.messages import SpanPosition
from steering.vectors import LayerDirection
from steering.workflows.extract import ExtractionRequest, extract
from tests.narrowing import present
from tests.steering.workflows.linear import LAYERS, PLANTED_LAYERS, LinearEngine
from tests.steering.workflows.linear_tokenizer import NEUTRAL, WORDS
from tests.steering.workflows.texts import conversation, planted_pairs

CARD = TypeAdapter(QualityCard)


@pytest.fixture
def request_() -> ExtractionRequest:
    return ExtractionRequest("sentiment", planted_pairs(), position="mean", description="good against bad", tags=("t",))


async def test_finds_the_planted_direction_at_the_planted_layers(
    engine: LinearEngine, request_: ExtractionRequest
) -> None:
    vector = await extract(engine, request_)
    for layer in PLANTED_LAYERS:
        assert float(vector.at(layer).direction @ engine.concept) > 0.9
        assert present(vector.quality).layers[layer].auroc == 1.0
    assert present(vector.recommended).layers[0] in PLANTED_LAYERS


async def test_scale_is_the_distance_between_the_class_means(engine: LinearEngine, request_: ExtractionRequest) -> None:
    entry = (await extract(engine, request_)).at(1)
    assert entry.scale == pytest.approx(present(entry.positive_mean) - present(entry.negative_mean), rel=1e-5)


@pytest.mark.parametrize("method", ["mean_difference", "pca", "probe", "whitened"])
async def test_every_method_goes_the_same_way(engine: LinearEngine, request_: ExtractionRequest, method: str) -> None:
    vector = await extract(engine, replace(request_, method=method))
    assert vector.method == method
    assert float(vector.at(1).direction @ engine.concept) > 0.7
    assert present(present(vector.quality).layers[1].auroc) > 0.95


async def test_every_text_is_read_once_and_all_layers_in_one_pass(
    engine: LinearEngine, request_: ExtractionRequest
) -> None:
    doubled = PairSet(request_.pairs.positive * 2, request_.pairs.negative * 2, request_.pairs.topics * 2)
    await extract(engine, replace(request_, pairs=doubled))
    different = len(set(doubled.positive) | set(doubled.negative))
    assert [(count, spec.layers) for count, spec in engine.capture_calls] == [(different, tuple(range(LAYERS)))]


async def test_provenance_suffices_to_make_it_again(engine: LinearEngine, request_: ExtractionRequest) -> None:
    vector = await extract(engine, request_)
    message = json.loads(json.dumps(vector.provenance))
    assert (message["method"], message["position"], message["seed"], message["holdout"]) == (
        "mean_difference",
        "mean",
        0,
        0.3,
    )
    assert message["dataset"] == dataset_digest(request_.pairs)
    assert (message["positives"], message["topics"], message["model"]) == (24, 8, "linear")
    again = await extract(LinearEngine(), request_)
    assert bool((again.at(1).direction == vector.at(1).direction).all())


async def test_card_counts_and_survives_json(engine: LinearEngine, request_: ExtractionRequest) -> None:
    card = present((await extract(engine, request_)).quality)
    assert card.pairs == 24
    assert 6 <= card.holdout <= 12
    assert CARD.validate_python(json.loads(json.dumps(card.to_dict()))) == card


def turned_at_random(pairs: PairSet, seed: int) -> PairSet:
    """Each pair turned round or not by a coin."""
    rng = random.Random(seed)
    turned = [(p, n) if rng.random() < 0.5 else (n, p) for p, n in zip(pairs.positive, pairs.negative, strict=True)]
    return PairSet(tuple(p for p, _ in turned), tuple(n for _, n in turned), pairs.topics)


async def test_shuffled_labels_are_at_chance(engine: LinearEngine) -> None:
    pairs, cards = planted_pairs(60, 20), []
    for seed in range(12):
        shuffled = turned_at_random(pairs, seed)
        request = ExtractionRequest("shuffled", shuffled, layers=(1,), position="mean", seed=seed)
        cards.append(present((await extract(engine, request)).quality))
    assert abs(sum(present(card.layers[1].auroc) for card in cards) / len(cards) - 0.5) < 0.15
    assert sum(any("pairs disagree" in message for message in card.warnings) for card in cards) >= 9


async def test_unpaired_texts(engine: LinearEngine) -> None:
    pairs = planted_pairs()
    lists = PairSet(pairs.positive, pairs.negative[:15], paired=False)
    vector = await extract(engine, ExtractionRequest("lists", lists, position="mean"))
    assert float(vector.at(1).direction @ engine.concept) > 0.8
    assert present(vector.quality).layers[1].pair_agreement is None
    assert present(vector.quality).pairs == 15


@pytest.mark.parametrize("paired", [False, True])
async def test_a_text_that_stands_several_times_is_one_topic_on_the_card(engine: LinearEngine, paired: bool) -> None:
    """Four texts six times each are 24 texts, and no more evidence than four."""
    pairs = planted_pairs(4, 4)
    repeated = PairSet(pairs.positive * 6, pairs.negative * 6, paired=paired)
    card = present((await extract(engine, ExtractionRequest("few", repeated, layers=(1,), position="mean"))).quality)
    assert (len(set(pairs.positive)), card.pairs) == (4, 24)
    assert any(message.startswith("few topics: 4") for message in card.warnings), card.warnings


async def test_one_pair_will_do(engine: LinearEngine) -> None:
    pair = PairSet(("the road lovely warm day",), ("the road grim cold day",))
    vector = await extract(engine, ExtractionRequest("single", pair, layers=(1, 2), position="mean"))
    assert float(vector.at(1).direction @ engine.concept) > 0.7
    assert present(vector.quality).layers[1].auroc is None
    assert any("too few pairs" in message for message in present(vector.quality).warnings)


async def test_conversations_read_at_the_answer(engine: LinearEngine) -> None:
    pairs = PairSet(
        tuple(conversation("the road", f"{word} day") for word in ("lovely", "warm", "glad", "kind")),
        tuple(conversation("the road", f"{word} day") for word in ("grim", "cold", "sad", "cruel")),
    )
    request = ExtractionRequest("answers", pairs, position="response_mean", holdout=0.0)
    vector = await extract(engine, request)
    assert float(vector.at(1).direction @ engine.concept) > 0.5
    assert any("nothing was held out" in message for message in present(vector.quality).warnings)


async def test_a_span_finds_what_texts_say_about_a_word_that_ends_none_of_them(engine: LinearEngine) -> None:
    """The word that carries the concept comes before two others: at `last`, block 0 has nothing to find, at the span it does."""
    said = {"positive": ("lovely", "warm", "glad", "kind"), "negative": ("grim", "cold", "sad", "cruel")}
    found = {}
    for span in ("day", "road"):
        positive, negative = (tuple(f"{word} day the road" for word in words) for words in said.values())
        request = ExtractionRequest(
            "span", PairSet(positive, negative), layers=(1,), position=SpanPosition(span=span), holdout=0.0
        )
        found[span] = await extract(engine, request)
    assert float(found["day"].at(1).direction @ engine.concept) > 0.5
    assert found["day"].provenance["position"] == {"span": "day"}
    assert json.loads(json.dumps(found["road"].provenance))["position"] == {"span": "road"}
    assert not torch.equal(found["day"].at(1).direction, found["road"].at(1).direction)


async def test_layers_without_a_direction_are_left_out_and_named(engine: LinearEngine) -> None:
    """The last word is the same in both poles, so block 0, which writes that word alone, has nothing to find."""
    pairs = planted_pairs()
    ended = PairSet(
        tuple(f"{text} day" for text in pairs.positive), tuple(f"{text} day" for text in pairs.negative), pairs.topics
    )
    vector = await extract(engine, ExtractionRequest("last", ended, position="last"))
    assert sorted(vector.layers) == [1, 2, 3]
    assert any("layer 0" in message and "left out" in message for message in present(vector.quality).warnings)


async def test_the_figures_of_the_card_leave_out_layers_without_a_map(
    engine: LinearEngine, request_: ExtractionRequest
) -> None:
    """Where the concept reads best there is no map, so the card is that of the other layers."""

    class Elsewhere(MeanDifference):
        name = "elsewhere"

        @staticmethod
        def fit_map(
            positive: Positives, negative: Negatives, paired: bool, found: LayerDirection, groups: Groups
        ) -> tuple[LowRankMap, float]:
            if float(found.direction @ engine.concept) > 0.9:
                raise InvalidRequest("no map here")
            return LowRankMap.of(found.direction[None], found.direction[None], torch.zeros(1)), 1.0

    METHODS.register("elsewhere", lambda: Elsewhere)
    try:
        vector = await extract(engine, replace(request_, method="elsewhere"))
        layers = tuple(vector.layers)
        assert 0 < len(layers) < LAYERS
        alone = await extract(engine, replace(request_, method="elsewhere", layers=layers))
    finally:
        METHODS.unregister("elsewhere")
    assert present(vector.quality).auroc == present(alone.quality).auroc
    assert present(vector.quality).auroc_interval == present(alone.quality).auroc_interval


@pytest.mark.parametrize("holdout", [0.0, 0.3])
@pytest.mark.parametrize("paired", [True, False])
async def test_texts_of_one_subject_are_one_observation_for_null_space(
    engine: LinearEngine, holdout: float, paired: bool
) -> None:
    """Topics are given for pairs, and found for lists: three subjects are too few, however many texts they have."""
    pairs = planted_pairs()
    topics = tuple(f"topic {index % 3}" for index in range(len(pairs)))
    if not paired:
        pairs = PairSet(("the road lovely", "a river warm", "glad day") * 8, pairs.negative, paired=False)
    request = ExtractionRequest(
        "few", replace(pairs, topics=topics) if paired else pairs, "null_space", holdout=holdout
    )
    with pytest.raises(InvalidRequest, match="got 3 topics of positives"):
        await extract(engine, request)


async def test_nothing_at_any_layer_raises(engine: LinearEngine) -> None:
    same = PairSet(("the road", "a river"), ("the road", "a river"))
    with pytest.raises(InvalidRequest, match="no direction stands out"):
        await extract(engine, ExtractionRequest("nothing", same, holdout=0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"layers": (0, 4)}, "layer 4 does not exist; the model has layers 0 to 3"),
        ({"layers": ()}, "no layers given"),
        ({"layers": (-5,)}, "layer -5 does not exist"),
        ({"position": "all"}, "many activations"),
        ({"holdout": 1.0}, "holdout"),
        ({"name": "Not A Name"}, "is not a name"),
    ],
)
async def test_invalid_requests_are_refused_before_anything_is_read(
    engine: LinearEngine, request_: ExtractionRequest, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await extract(engine, replace(request_, **change))
    assert engine.captured == 0


def test_negative_layers_count_from_the_top() -> None:
    assert layer_indices((-1, 0, 3), 4) == (0, 3)
    assert layer_indices("all", 3) == (0, 1, 2)


async def test_progress_runs_to_its_total(engine: LinearEngine, request_: ExtractionRequest) -> None:
    seen = []
    await extract(engine, request_, progress=lambda *message: seen.append(message))
    done = [one[0] for one in seen]
    assert done == sorted(done)
    assert seen[-1][:2] == (48 + LAYERS, 48 + LAYERS)
    assert {one[1] for one in seen} == {48 + LAYERS}


async def test_cancelling_stops_between_layers(engine: LinearEngine, request_: ExtractionRequest) -> None:
    fitted = []

    def watch(done: int, total: int, message: str) -> None:
        if message.startswith("fitting"):
            fitted.append(message)
            if len(fitted) == 2:
                task.cancel()

    task = asyncio.ensure_future(extract(engine, request_, progress=watch))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(fitted) == 2


async def test_no_thread_lives_on_that_could_compete_with_the_engine(
    engine: LinearEngine, request_: ExtractionRequest
) -> None:
    before = set(threading.enumerate())
    await extract(engine, request_)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive(), thread.name


def hidden_pairs(engine: LinearEngine) -> PairSet:
    """Pairs whose concept is early in the text, beside the word that is loudest at layer 3, and that end with any other word."""
    loudness = dict(zip(WORDS, engine.late_noise.tolist(), strict=True))
    loudest = max(NEUTRAL, key=loudness.__getitem__)
    quiet = [word for word in NEUTRAL if loudness[word] < loudness[loudest] - 6.0]
    frames = [f"{loudest} {' '.join(random.Random(i).choices(quiet, k=5))}" for i in range(24)]
    positive, negative = (tuple(f"{pole} {pole} {frame}" for frame in frames) for pole in ("lovely", "grim"))
    return PairSet(positive, negative, tuple(f"t{i % 8}" for i in range(24)))


async def test_the_card_has_the_auroc_of_the_largest_score(engine: LinearEngine, request_: ExtractionRequest) -> None:
    request = replace(request_, pairs=hidden_pairs(engine), position="last", layers=(3,))
    card = present((await extract(engine, replace(request, card_max=True))).quality)
    assert present(card.auroc) < 0.8
    assert card.max_auroc == 1.0
    assert present(card.max_auroc_interval)[0] > 0.7
    plain = present((await extract(engine, request)).quality)
    assert (plain.max_auroc, plain.auroc) == (None, card.auroc)
    nothing = present((await extract(engine, replace(request, card_max=True, holdout=0.0))).quality)
    assert nothing.max_auroc is None


async def test_progress_counts_the_second_reading(engine: LinearEngine, request_: ExtractionRequest) -> None:
    seen = list[tuple[int, int, str]]()
    await extract(engine, replace(request_, card_max=True), progress=lambda *message: seen.append(message))
    done = [one[0] for one in seen]
    assert done == sorted(done)
    assert seen[-1][:2] == (2 * 48 + LAYERS, 2 * 48 + LAYERS)
