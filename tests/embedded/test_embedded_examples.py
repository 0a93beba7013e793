"""The examples of README, quickstart and the pages show on the embedded model what their text says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from steering.client import Client
from steering.schemas.vectors import VectorAnswer
from tests.embedded.server_process import ServerProcess

pytestmark = pytest.mark.embedded

REPOSITORY = Path(__file__).resolve().parents[2]
README, API, LATENT_SPACE, QUICKSTART = (
    (REPOSITORY / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/api.md", "docs/latent_space.md", "docs/quickstart.md")
)
APARTMENT = "How is your new apartment?"
STRENGTH = 1.2
"""Of sentiment, in README and quickstart."""
SEED = 7
"""Of sampled answers. With it they do not repeat themselves in bfloat16 nor in float32: the processor decides which is served."""
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
def client(server: ServerProcess, starter: Callable[[str], VectorAnswer]) -> Client:
    for concept in ("sentiment", "formality"):
        starter(concept)
    return server.client


def repeats_itself(text: str) -> bool:
    words = text.lower().split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(runs)) < len(runs)


def body(page: str, mark: str) -> dict[str, Any]:
    """The request of a page that contains the mark."""
    blocks = re.findall(r"^```json\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = json.loads(next(block for block in blocks if mark in block))
    return found


def test_the_strengths_tried_here_are_those_of_the_pages() -> None:
    for page in (README, QUICKSTART):
        assert APARTMENT in page
        signed = {abs(float(one)) for one in re.findall(r'"sentiment", "strength": (-?[\d.]+)', page)}
        assert signed == {STRENGTH}


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
    read = [arm.metrics.readout["sentiment"].mean for arm in (down, base, up) if arm.metrics is not None]
    assert len(read) == 3
    assert read[0] < read[1]
    assert read[0] < read[2]
    assert not any(repeats_itself(arm.choices[0].text) for arm in answer.arms)
    again = client.readout([arm.choices[0].text for arm in (down, base, up)], vectors=["sentiment"]).texts
    (layer,) = again[0].readout["sentiment"]
    assert read == pytest.approx([text.readout["sentiment"][layer].mean for text in again], abs=1e-3)


def test_the_formality_example_of_the_readme_is_formal_and_hardly_repeats_itself(client: Client) -> None:
    """Without kernels the answers depend on what else runs, and now and then the model alone repeats itself."""
    strength = re.search(r'"clerk", \[\{"vector": "formality", "strength": ([\d.]+)\}\]', README)
    prompt = re.search(r'generate_stream\("([^"]+)", steering=\{"profile": "clerk"\}', README)
    assert strength is not None
    assert prompt is not None
    client.put_profile("clerk", [{"vector": "formality", "strength": float(strength[1])}])
    means = {}
    for name, steering in (("plain", []), ("clerk", {"profile": "clerk"})):
        found = client.generate(prompt[1], steering=steering, max_tokens=40, temperature=0.7, n=6, seed=SEED)
        texts = [choice.text for choice in found.choices]
        assert sum(map(repeats_itself, texts)) <= 1, texts
        read = client.readout(texts, vectors=["formality"]).texts
        means[name] = fmean(layer.mean for text in read for layer in text.readout["formality"].values())
    assert means["clerk"] > max(0.0, means["plain"] + 0.1)


def test_the_condition_of_the_api_page_tells_formal_from_casual_prompts(client: Client) -> None:
    fired: dict[str, list[bool]] = {}
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


def test_the_scores_of_the_api_page_follow_the_sentiment(client: Client) -> None:
    request = body(API, '"continuations"')
    differences = []
    steerings: list[list[dict[str, Any]]] = [[], request["steering"]]
    for steering in steerings:
        scores = client.score(**{**request, "steering": steering}).scores
        assert scores is not None
        wonderful, terrible = scores
        differences.append(wonderful.sum - terrible.sum)
    assert differences[1] > differences[0]


def test_the_texts_read_on_the_api_page_lie_at_their_poles(client: Client) -> None:
    lovely, dreadful = client.readout(**body(API, '"What a dreadful day."')).texts
    (layer,) = lovely.readout["sentiment"]
    assert lovely.readout["sentiment"][layer].mean > 0.5
    assert dreadful.readout["sentiment"][layer].mean < -0.5
    (text,) = client.explain(**{**body(API, "I could not stop laughing"), "top": 100}).texts
    assert next(one.z for one in text.concepts if one.vector.startswith("sentiment@")) > 2.0


def test_the_lens_shows_the_table_of_the_page(client: Client) -> None:
    """Up to rounding: the most likely token may change places with a near one on another processor."""
    table = re.findall(r"^\| (\d+) \| (`.*`) \|$", LATENT_SPACE, flags=re.MULTILINE)
    assert len(table) >= 5
    lens = client.logit_lens("The capital of France is", steering=[], top_k=5)
    for layer, cells in table:
        shown = re.findall(r"`([^`]*)`", cells)
        found = [one.text.replace("\xa0", " ") for one in lens.layers[int(layer)].plain[-1]]
        assert shown[0] in found[:2], (layer, shown, found)
    assert lens.layers[-1].plain[-1][0].text == " Paris"
