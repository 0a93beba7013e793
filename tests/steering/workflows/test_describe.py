"""A described concept: the model's own contrasting answers, filtered, make pairs that carry the concept."""

from collections import Counter
from collections.abc import AsyncGenerator

import pytest

from steering.client import Client
from steering.concepts.described import ASSISTANT, described, roles
from steering.concepts.loader import load_instructed
from steering.engine.api import Finish, GenerationRequest, SamplingParams, TokenEvent
from steering.errors import InvalidRequest, Overloaded
from steering.injection.rows import SteeringReport
from steering.pairs import ChatMessage
from steering.workflows.describe import Description, describe, instructed, unusable
from steering.workflows.extract import ExtractionRequest, extract
from steering.workflows.generate import background
from tests.app.running import running
from tests.narrowing import messages_of, present
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.test_generate import SAMPLED

PROMPTS = ("read a letter", "walk the road", "open the door", "the river")
REPLIES = {"cheerful": "lovely warm glad day", "gloomy": "grim cold sad day"}
LEFT_OUT = "left out, because they make no pair: 1 of {} that the model wrote (empty 1)"


class SilentEngine(LinearEngine):
    """Has nothing to say to one question where it should be gloomy."""

    def __init__(self, question: str) -> None:
        super().__init__(replies=REPLIES)
        self._question = question

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        if request.prompt == instructed(self, "gloomy", self._question):
            yield TokenEvent(0, -1, "", finish=Finish("stop", 1, 0, 0, SteeringReport()))
            return
        async for event in super().generate(request):
            yield event


async def test_answers_become_pairs_that_carry_the_concept() -> None:
    engine = LinearEngine(replies=REPLIES)
    found = await describe(engine, Description("cheerful", ("gloomy",)), prompts=PROMPTS)
    assert (found.dropped, found.warnings) == ({}, ())
    assert found.pairs.topics == PROMPTS
    assert found.pairs.positive[0] == (
        ChatMessage("user", "read a letter"),
        ChatMessage("assistant", "lovely warm glad day"),
    )
    request = ExtractionRequest("cheer", found.pairs, position="response_mean", holdout=0.0)
    assert float((await extract(engine, request)).at(1).direction @ engine.concept) > 0.9


async def test_every_answer_gets_a_seed_of_its_own_shared_by_both_poles() -> None:
    requests: list[GenerationRequest] = []

    def record(request: GenerationRequest, index: int) -> None:
        requests.append(request)

    engine = LinearEngine(fails=record, replies=REPLIES)
    found = await describe(engine, Description("cheerful", ("gloomy",), 3), prompts=PROMPTS)
    seeds = {
        pole: [one.sampling.seed for one in dict.fromkeys(requests) if pole in messages_of(one.prompt)[0].content]
        for pole in ("cheerful", "gloomy")
    }
    assert sorted(seeds["cheerful"]) == sorted(seeds["gloomy"])
    assert len(set(seeds["cheerful"])) == len(found.pairs) == 12
    assert len(set(found.pairs.topics)) == 4


async def test_the_assistant_answers_without_an_instruction_and_every_role_as_often_as_any_other() -> None:
    description = Description.of(ASSISTANT, described()[ASSISTANT])
    asked = load_instructed()
    given = [description.opposite(index, len(asked)) for index in range(2 * len(asked))]
    assert Counter(given) == dict.fromkeys(roles(), 2 * len(asked) // len(roles()))
    assert all(one != other for one, other in zip(given, given[len(asked) :], strict=False))
    assert description.answers == 4 * len(asked)
    engine = LinearEngine(replies={"pirate": "grim cold sad day", "king": "grim cold cold day"})
    axis = Description(None, ("a pirate", "a king"), 2)
    found = await describe(engine, axis, prompts=PROMPTS, sampling=SamplingParams(max_tokens=6, temperature=1.0))
    assert {text[-1].content for text in found.pairs.negative if not isinstance(text, str)} == {
        "grim cold sad day",
        "grim cold cold day",
    }
    request = ExtractionRequest("assistant", found.pairs, position="response_mean", holdout=0.0)
    assert float((await extract(engine, request)).at(1).direction @ engine.concept) > 0.9


@pytest.mark.parametrize(
    ("positive", "negative", "reason"),
    [
        ("", "a cold grim day", "empty"),
        ("a lovely day", "a cold grim day", "too short"),
        ("A lovely warm  day", "a lovely warm day", "identical"),
        ("I’m sorry, but I will not", "a cold grim day", "refusal"),
        ("a lovely warm day", "As an AI I have no days", "refusal"),
        ("a lovely warm day", "a cold grim day", None),
    ],
)
def test_what_makes_no_pair(positive: str, negative: str, reason: str | None) -> None:
    assert unusable(positive, negative) == reason


async def test_answers_that_make_no_pair_are_counted() -> None:
    found = await describe(SilentEngine(PROMPTS[1]), Description("cheerful", ("gloomy",)), prompts=PROMPTS)
    assert found.pairs.topics == (PROMPTS[0], *PROMPTS[2:])
    assert found.warnings == (LEFT_OUT.format(len(PROMPTS)),)


def test_the_card_of_a_described_concept_counts_them() -> None:
    asked = load_instructed()
    with running(SilentEngine(asked[0])) as address, Client(address) as client:
        vector = client.extract_vector("cheer", describe={"trait": "cheerful", "opposite": "gloomy"})
    card = present(vector.quality)
    assert LEFT_OUT.format(len(asked)) in card.warnings
    assert card.pairs == len(asked) - 1


async def test_too_few_usable_answers_say_why() -> None:
    engine = LinearEngine(replies={"cheerful": "lovely", "gloomy": "grim"})
    with pytest.raises(InvalidRequest, match=r"0 usable pairs of answers out of 4 \(too short 4\)"):
        await describe(engine, Description("cheerful", ("gloomy",)), prompts=PROMPTS)


@pytest.mark.parametrize(
    ("trait", "opposite", "message"), [(" ", "gloomy", "both in words"), ("Gloomy", "gloomy", "are the same")]
)
async def test_descriptions_that_cannot_be(engine: LinearEngine, trait: str, opposite: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await describe(engine, Description(trait, (opposite,)), prompts=PROMPTS)


async def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        await describe(LinearEngine(chat_template=False), Description("cheerful", ("gloomy",)), prompts=PROMPTS)


def test_a_template_without_system_messages_is_instructed_by_the_user() -> None:
    assert [m.role for m in instructed(LinearEngine(), "cheerful", "the river")] == ["system", "user"]
    (only,) = instructed(LinearEngine(system_role=False), "cheerful", "the river")
    assert only.role == "user"
    assert "cheerful" in only.content
    assert only.content.endswith("the river")


async def test_background_work_waits_for_a_full_queue() -> None:
    refusals = iter([Overloaded("full")] * 3)
    engine = LinearEngine(fails=lambda request, index: next(refusals, None))
    steps = []
    found = await background(engine, [SAMPLED] * 5, pause=0.0, progress=lambda *one: steps.append(one))
    assert len({one.text for one in found}) == 1
    assert steps[-1] == (5, 5, "generating")


async def test_background_work_stays_behind_live_traffic() -> None:
    seen: list[int] = []

    def record(request: GenerationRequest, index: int) -> None:
        seen.append(request.priority)

    engine = LinearEngine(fails=record)
    await background(engine, [SAMPLED] * 40)
    assert set(seen) == {1}
    assert engine.peak == 16
