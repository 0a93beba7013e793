"""The main job over HTTP: make a vector, read its card, steer both ways, compare, keep strengths."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest

from steering.client import ApiError, Client
from steering.schemas.generation import TokenPiece
from steering.schemas.vectors import VectorAnswer
from tests.embedded.material import asked, pair_words
from tests.embedded.server_process import ServerProcess

pytestmark = pytest.mark.embedded

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
QUESTIONS = (
    "How was your weekend?",
    "Tell me about the weather today.",
    "What do you think of Mondays?",
    "How was the concert last night?",
    "Tell me about your new neighbour.",
    "What is it like to live by the sea?",
    "How did the exam go?",
    "How was the food at the new restaurant?",
    "Tell me about your last holiday.",
    "How was the drive home?",
    "What did you think of the film?",
    "How is the new job?",
)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Client:
    return server.client


@pytest.fixture(scope="module")
def sentiment(starter: Callable[[str], VectorAnswer]) -> VectorAnswer:
    """The vector of the starter concept with default options; no other test makes a version of it."""
    return starter("sentiment")


def read_back(client: Client, texts: Sequence[str], vector: str = "sentiment") -> float:
    """The mean readout of texts on their own, as the unsteered model reads them."""
    written = [text for text in texts if text.strip()]
    found = client.readout(written, vectors=[vector]).texts
    return fmean(layer.mean for text in found for layer in text.readout[vector].values())


def greedy(client: Client, question: str, count: int = 16, **steering: Any) -> Any:
    return client.generate(messages=asked(question), max_tokens=count, temperature=0.0, **steering)


def test_the_card_of_the_vector_proves_it(client: Client, sentiment: VectorAnswer) -> None:
    assert (sentiment.id, sentiment.method, sentiment.d_model) == ("sentiment@1", "mean_difference", 576)
    assert sentiment.layers == list(range(30))
    assert client.get_vector("sentiment") == sentiment
    card = sentiment.quality
    assert card is not None
    assert (card.pairs, card.holdout) == (64, 24)
    assert all("shown to steer" in warning for warning in card.warnings), "it reads well; its measurement may warn"
    (layer,) = sentiment.recommended.layers
    best = card.layers[layer]
    assert best.auroc is not None
    assert best.auroc_interval is not None
    assert best.random_auroc is not None
    assert best.auroc >= 0.95
    assert best.auroc_interval[0] > best.random_auroc
    assert best.auroc > (card.layers[0].auroc or 0.0)


def test_the_same_pairs_in_the_body_make_the_same_vector(client: Client, sentiment: VectorAnswer) -> None:
    own = client.extract_vector("sentiment-of-pairs", pairs=pair_words("sentiment"))
    assert own.provenance["dataset"] == sentiment.provenance["dataset"]
    assert own.quality is not None
    assert sentiment.quality is not None
    assert own.quality.auroc == sentiment.quality.auroc
    # what was measured of the starter concept belongs to its vector alone
    assert (own.recommended.basis, sentiment.recommended.basis) == ("card", "measured")
    nearest = client.similar_vectors("sentiment-of-pairs").data[0]
    assert nearest.id == "sentiment@1"
    assert min(nearest.cosine.values()) > 0.999


def test_comparison_moves_both_ways(client: Client, sentiment: VectorAnswer) -> None:
    answer = client.compare(
        messages=asked("How was your weekend?"),
        intervention={"vector": "sentiment"},
        strengths=[-1.0, 0.0, 1.0],
        readout=["sentiment"],
        max_tokens=32,
        temperature=0.7,
        n=4,
        seed=7,
    )
    arms = {arm.name: arm for arm in answer.arms}
    assert (answer.seed, answer.baseline, list(arms)) == (7, "base", ["base", "-1", "+1"])
    texts = {name: [choice.text for choice in arm.choices] for name, arm in arms.items()}
    assert read_back(client, texts["-1"]) < read_back(client, texts["base"]) < read_back(client, texts["+1"])
    for name, sign in (("-1", -1.0), ("+1", 1.0)):
        arm = arms[name]
        assert arm.against_baseline is not None
        assert arm.against_baseline.kl_mean is not None
        assert arm.against_baseline.kl_mean > 0.0
        shift = arm.against_baseline.readout_shift["sentiment"]
        assert shift.interval is not None
        assert sign * shift.mean > 0.0
        assert shift.interval[0] <= shift.mean <= shift.interval[1], "four samples show the mean, not its significance"
        (applied,) = arm.steering.applied
        assert (applied.vector, applied.sha256, applied.strength) == ("sentiment@1", sentiment.sha256, sign)
        assert list(applied.relative_dose) == [str(layer) for layer in sentiment.recommended.layers]
        assert all(0.02 < dose < 0.5 for dose in applied.relative_dose.values())
    assert arms["base"].steering.applied == []


def test_arms_share_their_text_up_to_where_they_part(client: Client, sentiment: VectorAnswer) -> None:
    answer = client.compare(
        messages=asked("How did the exam go?"), steering=[{"vector": sentiment.id, "strength": 0.4}],
        readout=["sentiment"], max_tokens=24, temperature=0.7, n=4, seed=11,
    )  # fmt: skip
    base, steered = answer.arms
    assert steered.against_baseline is not None
    for one, other, parted in zip(
        base.choices, steered.choices, steered.against_baseline.first_divergence, strict=True
    ):
        mine, theirs = ([token.id for token in choice.tokens or ()] for choice in (one, other))
        assert mine[:parted] == theirs[:parted]
        assert (mine == theirs) if parted is None else (mine[parted : parted + 1] != theirs[parted : parted + 1])


def test_dose_moves_the_text_step_by_step(client: Client, sentiment: VectorAnswer) -> None:
    """36 answers a strength, sampled with the same noise at every strength, read back by the unsteered model."""

    def written(strength: float) -> list[str]:
        def answered(question: str) -> list[str]:
            answer = client.generate(
                messages=asked(question), steering=[{"vector": sentiment.id, "strength": strength}],
                max_tokens=32, temperature=0.7, top_k=50, n=3, seed=1,
            )  # fmt: skip
            return [choice.text for choice in answer.choices]

        with ThreadPoolExecutor(len(QUESTIONS)) as threads:
            return [text for texts in threads.map(answered, QUESTIONS) for text in texts]

    means = [read_back(client, written(strength)) for strength in STRENGTHS]
    assert all(weaker < stronger for weaker, stronger in pairwise(means)), means
    assert means[-1] - means[0] > 0.3, means


def test_a_stream_is_the_answer_in_pieces(client: Client, sentiment: VectorAnswer) -> None:
    def streamed(strength: float) -> float:
        """The mean of the readings that came with the pieces."""
        *pieces, whole = client.generate_stream(
            messages=asked("How was the trip?"), steering=[{"vector": sentiment.id, "strength": strength}],
            max_tokens=24, temperature=0.7, seed=3, readout=["sentiment"],
        )  # fmt: skip
        assert not isinstance(whole, TokenPiece)
        assert "".join(piece.text for piece in pieces if isinstance(piece, TokenPiece)) == whole.choices[0].text
        readings = [piece.readout["sentiment"] for piece in pieces if isinstance(piece, TokenPiece) and piece.readout]
        assert len(readings) == whole.usage.completion_tokens
        return fmean(readings)

    assert streamed(-0.8) < streamed(0.8)


def test_a_profile_is_applied_by_name(client: Client, sentiment: VectorAnswer) -> None:
    steering = [{"vector": sentiment.id, "strength": -1.0}]
    client.put_profile("gloomy", steering, description="sees the dark side")
    by_name = greedy(client, "How was your weekend?", steering={"profile": "gloomy"})
    spelled = greedy(client, "How was your weekend?", steering=steering)
    plain = greedy(client, "How was your weekend?", steering=[])
    assert by_name.steering.fingerprint == spelled.steering.fingerprint != plain.steering.fingerprint
    assert by_name.steering.applied[0].strength == -1.0
    assert by_name.choices[0].text == spelled.choices[0].text != plain.choices[0].text
    client.delete_profile("gloomy")


def test_default_steering_applies_to_those_who_name_none(client: Client, sentiment: VectorAnswer) -> None:
    plain = greedy(client, "How was your weekend?")
    client.set_default_steering([{"vector": sentiment.id, "strength": -1.0}])
    try:
        silent = greedy(client, "How was your weekend?")
        none_at_all = greedy(client, "How was your weekend?", steering=[])
    finally:
        client.clear_default_steering()
    assert [one.vector for one in silent.steering.applied] == [sentiment.id]
    assert silent.choices[0].text != plain.choices[0].text
    assert none_at_all.steering.applied == []
    assert none_at_all.choices[0].text == greedy(client, "How was your weekend?").choices[0].text


def test_a_vector_that_a_profile_uses_is_not_deleted(client: Client, sentiment: VectorAnswer) -> None:
    client.combine_vectors("mood", [{"vector": sentiment.id, "weight": 0.5}])
    client.put_profile("moody", [{"vector": "mood", "strength": 1.0}])
    with pytest.raises(ApiError) as refused:
        client.delete_vector("mood")
    assert (refused.value.status, refused.value.code) == (409, "vector_in_use")
    client.delete_profile("moody")
    client.delete_vector("mood")
    with pytest.raises(ApiError) as gone:
        client.get_vector("mood")
    assert (gone.value.status, gone.value.code) == (404, "vector_not_found")
