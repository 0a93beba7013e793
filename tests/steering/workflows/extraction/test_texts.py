"""Texts that stand alone become answers; conversations stay; and where pairs are read by default follows from their form."""

from dataclasses import replace

from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept, load_neutral
from steering.pairs import ChatMessage, PairSet
from steering.workflows.extraction.extract import ExtractionRequest, extract
from steering.workflows.extraction.texts import as_answers, default_position
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.texts import conversation, planted_pairs


def test_a_text_that_stands_alone_answers_the_neutral_prompt_of_its_place() -> None:
    talk = conversation("the road", "warm day")
    found = as_answers(("a glad river", talk, "old stone"), LinearEngine().info)
    assert found[0] == (ChatMessage("user", load_neutral()[0]), ChatMessage("assistant", "a glad river"))
    assert found[1] == talk
    assert found[2] == (ChatMessage("user", load_neutral()[2]), ChatMessage("assistant", "old stone"))


def test_there_are_more_texts_than_neutral_prompts() -> None:
    found = as_answers(("x",) * (len(load_neutral()) + 1), LinearEngine().info)
    assert found[-1] == found[0]


def test_without_a_chat_template_texts_stay() -> None:
    assert as_answers(("a", "b"), LinearEngine(chat_template=False).info) == ("a", "b")


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
    sides = (plain.positive, plain.negative)
    mixed = replace(plain, **{
        name: tuple(conversation("the road", text) if index % 2 else text for index, text in enumerate(side))
        for name, side in zip(("positive", "negative"), sides, strict=True)
    })  # fmt: skip
    for pairs in (plain, mixed):
        vector = await extract(engine, ExtractionRequest("mood", pairs, layers=(1,), position="response_mean"))
        assert float(vector.at(1).direction @ engine.concept) > 0.95
        assert vector.provenance["position"] == "response_mean"
