"""Texts that stand alone become answers; conversations stay; and where pairs are read by default follows from their form."""

from dataclasses import replace

from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept, load_neutral
from steering.pairs import ChatMessage, PairSet
from steering.workflows.extract import ExtractionRequest, extract
from steering.workflows.texts import as_answers, capture_prompts, default_position
from tests.narrowing import present
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.texts import conversation, planted_pairs, planted_texts


def test_a_text_that_stands_alone_answers_the_neutral_prompt_of_its_place() -> None:
    talk = conversation("the road", "warm day")
    found = as_answers(("a glad river", talk, "old stone"))
    assert found[0] == (ChatMessage("user", load_neutral()[0]), ChatMessage("assistant", "a glad river"))
    assert found[1] == talk
    assert found[2] == (ChatMessage("user", load_neutral()[2]), ChatMessage("assistant", "old stone"))


def test_there_are_more_texts_than_neutral_prompts() -> None:
    found = as_answers(("x",) * (len(load_neutral()) + 1))
    assert found[-1] == found[0]


def test_without_a_chat_template_a_conversation_is_a_transcript_whose_reply_is_known() -> None:
    engine, talk = LinearEngine(chat_template=False), conversation("the road", "warm day")
    plain, spoken = capture_prompts(engine, ("a river", talk))
    assert (plain.prompt, plain.prompt_length) == ("a river", None)
    assert spoken.prompt == engine.tokenizer.encode("User: the road\n\nAssistant: warm day")
    reply = spoken.prompt[spoken.prompt_length :]
    assert [engine.tokenizer.token_text(one) for one in reply if isinstance(one, int)] == ["warm", "day"]
    assert capture_prompts(LinearEngine(), (talk,))[0].prompt == talk


def test_a_transcript_may_be_of_a_reply_alone() -> None:
    engine = LinearEngine(chat_template=False)
    (spoken,) = capture_prompts(engine, ((ChatMessage("assistant", "warm day"),),))
    assert spoken.prompt == engine.tokenizer.encode("Assistant: warm day")
    reply = spoken.prompt[spoken.prompt_length :]
    assert [engine.tokenizer.token_text(one) for one in reply if isinstance(one, int)] == ["warm", "day"]


async def test_base_models_read_replies_in_a_transcript_and_the_card_says_so() -> None:
    engine = LinearEngine(chat_template=False)
    positive, negative = [tuple(conversation("the road", text) for text in side) for side in planted_texts()]
    pairs = replace(planted_pairs(), positive=positive, negative=negative)
    request = ExtractionRequest("mood", pairs, position="response_mean")
    vector = await extract(engine, request)
    assert float(vector.at(1).direction @ engine.concept) > 0.9
    assert vector.provenance["text_form"] == "transcript"
    assert any("plain transcript" in warning for warning in present(vector.quality).warnings)


def test_answers_are_read_whole_and_statements_at_their_end() -> None:
    talk = conversation("the road", "warm day")
    assert default_position(PairSet(("a",), ("b",))) == "last"
    assert default_position(PairSet((talk,), (conversation("the road", "cold day"),))) == "response_mean"
    assert default_position(PairSet((talk, "a"), (talk, "b"))) == "mean"
    found = {name: default_position(load_concept(name)) for name in CONCEPTS}
    assert [name for name in found if found[name] == "last"] == ["truthfulness"]
    assert [name for name in found if found[name] == "mean"] == ["sentiment", "formality"]


async def test_read_as_answers_the_planted_direction_comes_out_whatever_form_the_texts_have() -> None:
    engine, plain = LinearEngine(), planted_pairs()
    positive, negative = [
        tuple(conversation("the road", text) if index % 2 else text for index, text in enumerate(side))
        for side in planted_texts()
    ]
    mixed = replace(plain, positive=positive, negative=negative)
    for pairs in (plain, mixed):
        vector = await extract(engine, ExtractionRequest("mood", pairs, layers=(1,), position="response_mean"))
        assert float(vector.at(1).direction @ engine.concept) > 0.95
        assert vector.provenance["position"] == "response_mean"
