"""Reading over HTTP on the embedded model: readouts, the lens, maps, and an evaluation that can be left."""

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from steering.client import Client
from steering.concepts.loader import load_concept
from steering.schemas.generation import TopLogprob
from tests.embedded.material import pair_words, words
from tests.embedded.server_process import ServerProcess
from tests.narrowing import present

pytestmark = pytest.mark.embedded

CAPITAL = "The capital of France is"
LAYER = 16


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Client:
    found = server.client
    pairs = pair_words("sentiment")[:16]
    found.extract_vector("reading", pairs=pairs, layers=[8, LAYER], position="mean", holdout=0)
    return found


def test_a_readout_tells_pleased_from_displeased_word_by_word(client: Client) -> None:
    texts = ["What a wonderful dinner, we were delighted.", "What a dreadful dinner, we were disgusted."]
    found = client.readout(texts, vectors=["reading"], layers=[LAYER]).texts
    pleased, displeased = (text.readout["reading"][str(LAYER)] for text in found)
    assert pleased.mean > displeased.mean + 0.3
    assert pleased.scores[:2] == pytest.approx(displeased.scores[:2], abs=0.05), "the same words so far"
    assert "".join(token.text for token in found[0].tokens) == texts[0]


def test_the_last_layer_of_the_lens_predicts_what_is_generated_plain_and_steered(client: Client) -> None:
    steering = [{"vector": "reading", "strength": -1.5, "layers": [LAYER]}]
    lens = client.logit_lens(CAPITAL, steering=steering, top_k=3)
    assert [one.layer for one in lens.layers] == list(range(30))
    for rows, interventions in ((lens.layers[-1].plain, []), (lens.layers[-1].steered, steering)):
        written = (
            client.generate(CAPITAL, steering=interventions, max_tokens=1, temperature=0.0, logprobs=3)
            .choices[0]
            .tokens
        )
        assert written is not None
        assert rows is not None
        best = rows[-1][0]
        assert best.id == written[0].id
        assert best.logprob == pytest.approx(written[0].logprob, abs=0.05)
    for one in lens.layers:
        assert (one.plain == one.steered) == (one.layer < LAYER)


def test_the_token_that_attends_to_a_phrase_is_that_of_transformers_weights(
    client: Client, plain_model: PreTrainedModel
) -> None:
    """As served: in bfloat16, with compiled passes. So the token may be another whose weight is almost as large."""
    chat = [
        {"role": "user", "content": "Pretend to be a pirate. What is the sea?"},
        {"role": "assistant", "content": "Arr, it is home."},
    ]
    layers = list(range(0, 30, 5))
    where = {"span": "a pirate", "read": "attending"}
    found = client.activations_json(messages=chat, position=where, layers=layers)
    whole = client.activations_json(messages=chat, position="all", layers=layers)
    ids = present(whole.token_ids)
    usual = plain_model.config._attn_implementation
    plain_model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = plain_model(torch.tensor([ids]), output_attentions=True).attentions
    plain_model.set_attn_implementation(usual)
    texts = [client.detokenize([one]).text for one in ids]
    start = next(at for at in range(len(texts)) if "".join(texts[at:]).startswith(" a pirate"))
    end = start + 2
    assert "".join(texts[start:end]) == " a pirate"
    chosen = []
    for layer in layers:
        weights = attentions[layer][0, :, end:, start:end].sum(-1).mean(0)
        (place,) = [at for at in range(len(texts)) if whole.layers[str(layer)][at] == found.layers[str(layer)][0]]
        assert weights[place - end] >= 0.9 * weights.max()
        chosen.append(place)
    assert len(set(chosen)) > 1


def test_the_answer_is_seen_to_form_in_the_later_layers(client: Client) -> None:
    lens = client.logit_lens(CAPITAL, steering=[], top_k=20)

    def paris(row: Sequence[TopLogprob]) -> float:
        return next((one.logprob for one in row if one.text == " Paris"), float("-inf"))

    found = [paris(one.plain[-1]) for one in lens.layers]
    assert found[-1] > -3.0
    assert max(found[:8]) < found[-1]


def test_labels_stand_further_apart_in_the_layers_than_in_the_input_embeddings(client: Client) -> None:
    pairs = load_concept("sentiment")
    texts = [words(text) for text in (*pairs.positive[:24], *pairs.negative[:24])]
    labels = ["pleased"] * 24 + ["displeased"] * 24
    found = client.latent_space(
        texts, labels=labels, layers=[LAYER], position="mean", vectors=["reading"], embeddings=True, path=0
    )
    assert found.embedding is not None
    assert found.embedding.separability is not None
    (mapped,) = found.layers
    assert mapped.separability is not None
    assert present(mapped.separability.auroc) >= present(found.embedding.separability.auroc)
    assert len(mapped.points) == len(found.embedding.points) == 48
    assert 0.0 < mapped.segments[0].visible <= 1.0


def test_an_evaluation_is_watched_and_left(client: Client) -> None:
    job = client.start_evaluation("layer_sweep", "reading", concept="sentiment", strengths=[1.0], max_tokens=64)
    events = client.job_events(job.id)
    assert next(record for record in events if record.progress.done > 0).status == "running"
    events.close()
    left = client.cancel_job(job.id)
    assert left.status == "cancelled"
    assert left.progress.done < left.progress.total / 2, "it did not go on to its end"
    assert client.generate("Hello", max_tokens=1).usage.completion_tokens == 1
