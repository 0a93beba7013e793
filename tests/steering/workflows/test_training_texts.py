"""What a direction is trained on: answers in a conversation, from where a pair's texts differ; and neutral answers as written."""

from collections.abc import AsyncGenerator

import pytest

from steering.concepts.loader import load_instructed, load_neutral
from steering.engine.api import Finish, GenerationRequest, TokenEvent
from steering.errors import InvalidRequest
from steering.injection.rows import SteeringReport
from steering.pairs import ChatMessage, PairSet
from steering.vectors import mix
from steering.workflows.generate import answer
from steering.workflows.texts import ANSWER, NEUTRAL, as_prompts, neutral_texts, token_pairs
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.texts import conversation

PAIRS = PairSet(("the road warm", "glad", "a kind river"), ("the road cold", "sad", "a cruel river"))


class SilentEngine(LinearEngine):
    """Has nothing to say to the second neutral prompt."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        if request.prompt == as_prompts(self, load_instructed())[1]:
            yield TokenEvent(0, -1, "", finish=Finish("stop", 1, 0, 0, SteeringReport()))
            return
        async for event in super().generate(request):
            yield event


@pytest.mark.parametrize("chat_template", [True, False])
async def test_neutral_texts_are_the_models_own_answers(chat_template: bool) -> None:
    engine = LinearEngine(chat_template=chat_template)
    texts = await neutral_texts(engine, seed=5)
    prompts = as_prompts(engine, load_instructed()[:NEUTRAL])
    assert len(texts) == len(prompts)
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = engine.tokenizer.encode(prompt)
        assert (text.ids[: len(ids)], text.start) == (ids, len(ids))
        assert len(text.ids) == len(ids) + ANSWER.max_tokens
        if number == 3:
            sampling = type(ANSWER)(ANSWER.max_tokens, ANSWER.temperature, seed=mix(5, number))
            assert text.ids[len(ids) :] == (await answer(engine, GenerationRequest(prompt, sampling))).tokens


async def test_neutral_texts_come_from_the_seed() -> None:
    engine = LinearEngine()
    first, again, other = [await neutral_texts(engine, seed) for seed in (1, 1, 2)]
    assert first == again
    assert first != other


async def test_a_prompt_without_an_answer_is_left_out() -> None:
    engine = SilentEngine()
    assert len(await neutral_texts(engine, 0)) == NEUTRAL - 1


async def test_a_text_that_stands_alone_is_trained_on_as_an_answer() -> None:
    engine = LinearEngine()
    found = token_pairs(engine, PAIRS, (2, 0))
    for index, pair in zip((2, 0), found, strict=True):
        question = (ChatMessage("user", load_neutral()[index]),)
        given = engine.tokenizer.encode(question)
        assert pair.positive == (*given, *engine.tokenizer.encode(PAIRS.positive[index])[1:])
        assert pair.negative == (*given, *engine.tokenizer.encode(PAIRS.negative[index])[1:])
        assert pair.start == len(given) + {2: 1, 0: 2}[index]


async def test_without_a_chat_template_it_is_a_transcript() -> None:
    engine = LinearEngine(chat_template=False)
    (pair,) = token_pairs(engine, PAIRS, (0,))
    expected = f"User: {load_neutral()[0]}\n\nAssistant: {PAIRS.positive[0]}"
    assert pair.positive == engine.tokenizer.encode(expected)
    assert pair.positive[: pair.start] == pair.negative[: pair.start]


async def test_a_conversation_stays_as_it_is() -> None:
    engine = LinearEngine()
    pairs = PairSet((conversation("the road", "warm day"),), (conversation("the road", "cold day"),))
    (pair,) = token_pairs(engine, pairs, (0,))
    assert pair.positive == engine.tokenizer.encode(pairs.positive[0])
    assert pair.start == 5


async def test_pairs_that_tell_nothing_are_left_out_and_none_left_is_refused() -> None:
    same = PairSet(("the road", "a glad river"), ("the road", "a sad river"))
    assert len(token_pairs(LinearEngine(), same, (0, 1))) == 1
    with pytest.raises(InvalidRequest, match="no pair is left"):
        token_pairs(LinearEngine(), same, (0,))
