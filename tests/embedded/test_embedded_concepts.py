"""Vectors worth trusting, made over HTTP: every starter concept, statements about cities, and 500 pairs as a job."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from steering.auroc import auroc
from steering.client import Client
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_evaluation_prompts, load_neutral
from steering.schemas.vectors import VectorAnswer
from tests.embedded.material import asked, pair_words, pairs_of
from tests.embedded.server_process import ServerProcess
from tests.narrowing import present

pytestmark = pytest.mark.embedded

PROVED = ("sentiment", "toxicity", "specificity", "formality", "refusal")
REPORTED = ("truthfulness", "sycophancy")
"""Held to nothing but to be better than chance; docs/concepts.md says what they reach."""


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Client:
    return server.client


def test_every_starter_concept_is_here() -> None:
    assert {*PROVED, *REPORTED} == set(CONCEPTS)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_starter_concept_reads_text_it_has_not_seen(starter: Callable[[str], VectorAnswer], concept: str) -> None:
    vector = starter(concept)
    assert vector.quality is not None
    (layer,) = vector.recommended.layers
    found = vector.quality.layers[layer]
    assert (vector.quality.pairs, vector.quality.holdout) == (64, 24)
    assert found.auroc is not None
    assert found.auroc_interval is not None
    assert found.random_auroc is not None
    assert found.auroc_interval[0] > max(0.5, found.random_auroc)
    if concept in PROVED:
        assert found.auroc >= 0.9


def last_scores(client: Client, vector: str, layer: int, texts: Sequence[str]) -> np.ndarray:
    """The readout at the last token of each text."""
    found = client.readout(texts, vectors=[vector], layers=[layer]).texts
    return np.array([text.readout[vector][str(layer)].last for text in found])


@pytest.mark.parametrize("first_half", [True, False])
def test_half_of_the_cities_tell_true_from_false_in_the_other_half(client: Client, first_half: bool) -> None:
    """Topics are groups of countries; no city and no group is in both parts. The layer, too, is chosen on the fitted one."""
    topics = sorted(set(pairs_of("cities").topics))
    fitted = set(topics[::2] if first_half else topics[1::2])
    pairs = pair_words("cities")
    vector = client.extract_vector("cities", pairs=[pair for pair in pairs if pair["topic"] in fitted])
    held = [pair for pair in pairs if pair["topic"] not in fitted]
    assert len(held) == len(pairs) // 2
    (layer,) = vector.recommended.layers
    true, false = (
        last_scores(client, vector.id, layer, [pair[pole] for pair in held]) for pole in ("positive", "negative")
    )
    assert vector.method == "mean_difference"
    assert auroc(true, false) >= 0.88


def test_500_pairs_are_read_with_progress_while_others_are_answered(client: Client) -> None:
    ways = ("{}", "It is said: {}", "Here is a statement. {}", "Somebody told me this: {}", "I read it in a book: {}")
    pairs = [
        {**pair, "positive": way.format(pair["positive"]), "negative": way.format(pair["negative"])}
        for way in ways
        for pair in pair_words("cities")
    ]
    assert len(pairs) == 500
    job = client.start_extraction("many-cities", pairs=pairs, layers=[14])
    assert job.status in ("queued", "running")
    events = []
    for event in client.job_events(job.id):
        events.append(event)
        if len(events) == 2:
            assert client.generate(messages=asked("Hello!"), max_tokens=4).usage.completion_tokens > 0
    done = [event.progress.done for event in events]
    totals = {event.progress.total for event in events if event.progress.total}
    assert done == sorted(done)
    assert len(set(done)) > 10
    assert totals == {2 * 500 + 1}
    assert events[-1].status == client.get_job(job.id).status == "succeeded"
    assert events[-1].result is not None
    assert events[-1].result["vector"]["id"] == "many-cities@1"
    card = client.get_vector("many-cities").quality
    assert card is not None
    assert card.pairs == 500


def test_a_distilled_instruction_makes_the_answers_under_it_likelier_without_it(client: Client) -> None:
    """On prompts that were not fitted, at the default layers, by a third of the way to the instruction at least."""
    instruction = "Answer as a cheerful pirate."
    fitted, others = load_neutral()[:12], load_evaluation_prompts("sentiment")[:4]
    vector = client.distil_vector("pirate", instruction, prompts=fitted, max_tokens=16)
    assert all(present(card.explained) > 0.05 for card in present(vector.quality).layers.values())
    apply = {"vector": "pirate", "operation": "apply"}
    plain, steered, told = 0.0, 0.0, 0.0
    for one in others:
        asked = [{"role": "user", "content": one}]
        under = [{"role": "system", "content": instruction}, *asked]
        answer = client.generate(messages=under, temperature=0.0, max_tokens=20, steering=[]).choices[0].text
        sums = [
            present(client.score(messages=messages, continuations=[answer], steering=steering).scores)[0].sum
            for messages, steering in ((asked, []), (asked, [apply]), (under, []))
        ]
        plain, steered, told = plain + sums[0], steered + sums[1], told + sums[2]
    assert told > plain
    assert (steered - plain) / (told - plain) > 1 / 3
