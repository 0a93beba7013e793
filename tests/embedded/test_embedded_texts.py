"""Activations, scores, explanations and clusters on the embedded model: numbers equal transformers, planted moods are found."""

import pytest
import torch
from transformers import PreTrainedModel

from steering.client import Client
from steering.engine.transformers.engine import TransformersEngine
from steering.workflows.activations import activations
from steering.workflows.logprobs import continuation_ids, continuation_rows, encode_continued, score
from tests.embedded.material import pair_words
from tests.embedded.server_process import ServerProcess

pytestmark = pytest.mark.embedded

TEXTS = ("The harbour is on the west side of the island.", "What a wonderful dinner, we were delighted.")
PLEASED = ["What a wonderful dinner, we were delighted.", "I love this garden, it makes me happy every day."]
DISPLEASED = ["What a dreadful dinner, we were disgusted.", "I hate this garden, it makes me miserable every day."]
PLAIN = ["The parcel weighs two kilograms and is tied with string."]


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Client:
    found = server.client
    pairs = pair_words("sentiment")[:16]
    found.extract_vector("explaining", pairs=pairs, layers=[16], position="mean", holdout=0)
    return found


async def test_activations_equal_the_hidden_states_of_transformers(
    engine: TransformersEngine, plain_model: PreTrainedModel
) -> None:
    layers = (0, 12, 28)
    found = await activations(engine, TEXTS, layers, "all")
    for index, capture in enumerate(found.captures):
        with torch.no_grad():
            states = plain_model(torch.tensor([capture.token_ids]), output_hidden_states=True).hidden_states
        for row, layer in enumerate(layers):
            torch.testing.assert_close(
                found.captures[index].activations[row], states[layer + 1][0], rtol=1e-4, atol=1e-3
            )


async def test_scores_equal_a_direct_computation(engine: TransformersEngine, plain_model: PreTrainedModel) -> None:
    prompt = engine.tokenizer.encode("The capital of France is")
    texts = [" Paris", " Berlin", " Paris, the largest city of the country."]
    rows = tuple((*prompt, *continuation_ids(engine.tokenizer, "The capital of France is", text)) for text in texts)
    (before,) = encode_continued(engine, "The capital of France is")
    found = await score(engine, list(continuation_rows(engine, before, texts)))
    for row, text, one in zip(rows, texts, found, strict=True):
        assert engine.tokenizer.decode(one.token_ids) == text
        with torch.no_grad():
            logits = plain_model(torch.tensor([row])).logits[0, len(prompt) - 1 : -1]
        following = torch.tensor(row[len(prompt) :])
        logprobs = torch.log_softmax(logits, -1).gather(1, following[:, None])[:, 0]
        assert one.logprobs == pytest.approx(logprobs.tolist(), abs=1e-3)
        assert one.greedy == (logits.argmax(-1) == following).tolist()
    paris, berlin, _ = (sum(value for value in one.logprobs if value is not None) for one in found)
    assert paris > berlin


def test_a_mood_stands_out_with_its_sign_and_plain_text_does_not(client: Client) -> None:
    found = client.explain([*PLEASED, *DISPLEASED, *PLAIN], threshold=0.0, top=100).texts
    scores = [{one.vector: one.z for one in text.concepts}["explaining@1"] for text in found]
    assert min(scores[:2]) > max(scores[2:4])
    assert min(scores[:2]) > 2.0
    assert abs(scores[4]) < 2.0


def test_moods_are_grouped_with_the_vector_between_them(client: Client) -> None:
    words = ("dinner", "garden", "film", "journey", "hotel", "concert")
    texts = [f"What a {word} {thing}, we were {felt}." for word, felt in (("wonderful", "delighted"), ("dreadful", "disgusted")) for thing in words]  # fmt: skip
    found = client.clusters(texts, layer=16, clusters=2, position="last")
    assert found.labels in ([0] * 6 + [1] * 6, [1] * 6 + [0] * 6)
    (pair,) = found.pairs
    assert pair.nearest is not None
    assert abs(pair.nearest.cosine) > 0.1
