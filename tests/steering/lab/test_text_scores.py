"""Answers are read where they stand: the tokens of the prompt count nowhere, whatever form it has."""

import pytest

from steering.engine.api import CapturePrompt, CaptureSpec, Prompt
from steering.lab.report import scores
from steering.lab.trials import SCORERS
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector

LONG = "the road the river the house the door the train the city the bread the field"


@pytest.mark.parametrize("prompt", ["the road", LONG])
async def test_an_answer_to_a_text_is_read_without_the_text(engine: LinearEngine, prompt: str) -> None:
    vector = planted_vector(engine)
    answers = [" warm kind warm", " grim sad grim"]
    found = (await scores(engine, {"mood": vector}, [prompt, prompt], answers))["mood"]
    layer = vector.recommended_layers()[0]
    start = len(engine.tokenizer.encode(prompt))
    expected = []
    for answer in answers:
        (read,) = await engine.capture([CapturePrompt(prompt + answer)], CaptureSpec((layer,), "all"))
        expected.append(SCORERS["projection"].score(read.activations[0, start:], vector.at(layer)))
    assert found == pytest.approx(expected)
    assert found[0] > 0.0 > found[1]


async def test_texts_and_conversations_may_alternate_and_answers_may_be_empty(engine: LinearEngine) -> None:
    vector = planted_vector(engine)
    prompts: list[Prompt] = ["the road", conversation("the road"), "the road"]
    found = (await scores(engine, {"mood": vector}, prompts, [" warm", "warm", ""]))["mood"]
    alone = [
        (await scores(engine, {"mood": vector}, [prompt], [text]))["mood"][0]
        for prompt, text in zip(prompts, [" warm", "warm", ""], strict=True)
    ]
    assert found == pytest.approx(alone)
    assert found[0] > found[2]
    assert await scores(engine, {}, prompts, ["a"] * 3) == {}
