"""The examples of README, quickstart and the API page show on the embedded model what their text says."""

from statistics import fmean

import pytest

from steering.client import Client
from tests.embedded.server_process import ServerProcess

pytestmark = pytest.mark.embedded

APARTMENT = "How is your new apartment?"
STRENGTH = 1.2
"""Of sentiment, in README and quickstart."""
FORMAL = (
    "Dear Sir or Madam, I would be grateful if you could inform me of the opening hours of your establishment.",
    "I am writing to enquire whether my application has been received and when I may expect a decision.",
    "We regret to inform you that the delivery of your order has been postponed until further notice.",
)
CASUAL = (
    "hey, so when do you guys open tomorrow? just wanna know if it's worth coming by early",
    "yo did you get my application or what? kinda wanna know what's going on with it",
    "sorry mate, your stuff's gonna be late, no idea when it'll turn up, we'll let you know",
)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Client:
    found = server.client
    found.extract_vector("sentiment", concept="sentiment")
    found.extract_vector("formality", concept="formality")
    return found


def repeats_itself(text: str) -> bool:
    words = text.lower().split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(runs)) < len(runs)


def test_the_sentiment_of_the_text_follows_the_strength_and_nothing_repeats(client: Client) -> None:
    answer = client.compare(
        messages=[{"role": "user", "content": APARTMENT}],
        intervention={"vector": "sentiment"},
        strengths=[-STRENGTH, 0, STRENGTH],
        readout=["sentiment"],
        max_tokens=40,
        temperature=0.0,
    )
    base, down, up = answer.arms
    read = [arm.metrics.readout["sentiment"].mean for arm in (down, base, up)]
    assert read[0] < read[1]
    assert read[0] < read[2]
    assert not any(repeats_itself(arm.choices[0].text) for arm in answer.arms)
    again = client.readout([arm.choices[0].text for arm in (down, base, up)], vectors=["sentiment"]).texts
    (layer,) = again[0].readout["sentiment"]
    assert read == pytest.approx([text.readout["sentiment"][layer].mean for text in again], abs=1e-3)


def test_the_formality_example_is_formal(client: Client) -> None:
    texts = {}
    for name, steering in (("plain", []), ("clerk", [{"vector": "formality", "strength": 0.7}])):
        found = client.generate(
            messages=[{"role": "user", "content": "Tell a customer that the parcel is late."}],
            steering=steering, max_tokens=40, temperature=0.7, n=4, seed=3,
        )  # fmt: skip
        texts[name] = [choice.text for choice in found.choices]
    read = {name: client.readout(found, vectors=["formality"]).texts for name, found in texts.items()}
    means = {
        name: fmean(layer.mean for text in found for layer in text.readout["formality"].values())
        for name, found in read.items()
    }
    assert means["clerk"] > means["plain"] + 0.1


def test_the_condition_of_the_api_page_tells_formal_from_casual_prompts(client: Client) -> None:
    fired = {}
    for name, prompts in (("formal", FORMAL), ("casual", CASUAL)):
        for prompt in prompts:
            when = {"vector": "formality", "above": 0.0, "at": "prompt_mean"}
            found = client.generate(
                prompt, steering=[{"vector": "sentiment", "strength": 0.5, "when": when}], max_tokens=2, temperature=0.0
            )
            (applied,) = found.steering.applied
            assert applied.condition_score is not None
            assert applied.fired == (applied.condition_score > 0.0)
            fired.setdefault(name, []).append(applied.fired)
    assert all(fired["formal"]), fired
    assert not any(fired["casual"]), fired
