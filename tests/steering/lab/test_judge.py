"""Ratings of a judge become means; missing ratings are counted and reported, and never become zeros."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import Finish, GenerationRequest, TokenEvent
from steering.errors import ContextLengthExceeded
from steering.injection.rows import SteeringReport
from steering.lab.evaluations import DoseResponseRequest, dose_response
from steering.lab.judge import (
    ASPECTS,
    EngineJudge,
    Judging,
    Unanswered,
    instruction_of,
    judge_answers,
    questions_about,
    rating,
)
from steering.pairs import ChatMessage
from tests.engines import family_engine
from tests.fakes import ScriptedEngine
from tests.narrowing import present
from tests.steering.lab.test_dose_response import PROMPTS, SAMPLING
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.vectors import planted_vector


class Reading:
    """A judge that answers by rule: `rule(question)` is its reply; None: nobody is there."""

    at_once = 3

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        self.rule, self.open, self.most = rule, 0, 0

    async def ask(self, question: str) -> str:
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0)
        self.open -= 1
        reply = self.rule(question)
        if reply is None:
            raise Unanswered("nobody there")
        return reply


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Rating: 2", 2),
        ("rating: **1**", 1),
        ("I would say Rating: 0, no: Rating: 1.", 1),
        ("  2.\n", 2),
        ("", None),
        ("2 or 1", None),
        ("Rating: 3", None),
        ("Rating: 25", None),
        ("Rating (0-2): 1", 1),
        ("Rating, 0 to 2: 2", 2),
        ("Rating: 2 - it runs through the text", 2),
        ("Rating: 0-2", None),
        ("Rating: 1.5", None),
        ("Rating: two", None),
        ("The text has 2 sentences", None),
    ],
)
def test_a_rating_is_read_or_there_is_none(reply: str, expected: int | None) -> None:
    assert rating(reply) == expected


@pytest.mark.parametrize(("ratings", "overall"), [((2, 2, 2), 2.0), ((2, 0, 2), 0.0), ((1, 2, 2), 3 / (1 + 0.5 + 0.5))])
async def test_one_failing_respect_fails_the_answer(ratings: tuple[int, ...], overall: float) -> None:
    replies = iter(ratings)
    judge = Reading(lambda question: f"Rating: {next(replies)}")
    (point,) = (await judge_answers(Judging(judge, "joy"), ["a"], {1.0: ["joy"]})).points
    assert present(point.overall).mean == pytest.approx(overall)


def test_each_question_shows_what_it_is_about_and_nothing_else() -> None:
    concept, instruction, fluency = questions_about("{joy}", "Say {x}", "an {answer}")
    assert list(ASPECTS) == ["concept", "instruction", "fluency"]
    assert all("an {answer}" in question for question in (concept, instruction, fluency))
    assert "{joy}" in concept
    assert "Say {x}" in instruction
    assert "Say" not in concept + fluency
    assert len(questions_about("c", "i" * 9000, "a" * 9000)[1]) < 9000


def planted(question: str) -> str:
    """Concept 2 where the text says joy, instruction always 2, fluency 1."""
    if question.startswith("You judge whether a text shows"):
        return "Rating: 2" if "joy" in question.partition("<text>")[2] else "Rating: 0"
    return "Rating: 2" if "instruction" in question else "Rating: 1"


async def test_figures_are_those_of_the_planted_ratings() -> None:
    judge = Reading(planted)
    answers = {1.0: ["joy", "joy"], 0.0: ["road", "joy"]}
    seen: list[tuple[int, int, str]] = []
    found = await judge_answers(Judging(judge, "joy"), ["a", "b"], answers, progress=lambda *step: seen.append(step))
    assert (found.ratings, found.failures, found.warnings) == (12, {}, ())
    zero, one = found.points
    assert (zero.strength, one.strength) == (0.0, 1.0)
    assert present(zero.concept).mean == 1.0
    assert present(one.concept).mean == present(one.instruction).mean == 2.0
    assert present(one.fluency).mean == 1.0
    assert present(one.overall).mean == pytest.approx(3 / (0.5 + 0.5 + 1))
    assert present(zero.overall).mean == pytest.approx(present(one.overall).mean / 2), "a failed answer counts as 0"
    assert (one.judged, one.failed) == (2, 0)
    assert judge.most == judge.at_once
    assert seen[-1] == (12, 12, "judging")


async def test_what_cannot_be_had_is_counted_and_is_no_zero() -> None:
    def rule(question: str) -> str | None:
        text = question.partition("<text>")[2]
        return None if "gone" in text else "Let me think" if "odd" in text else planted(question)

    found = await judge_answers(Judging(Reading(rule), "joy"), ["a", "b"], {1.0: ["joy", "gone"], 2.0: ["odd", "gone"]})
    assert found.failures == {"unreachable": 6, "unreadable": 3}
    one, two = found.points
    assert (one.judged, one.failed, present(one.concept).mean) == (1, 1, 2.0)
    assert (two.judged, two.failed, two.overall, two.concept) == (0, 2, None, None)
    assert found.warnings == (
        "9 of 12 ratings of the judge could not be had (6 unreachable, 3 unreadable); their answers count nowhere",
    )


def asked_of(engine: LinearEngine, **changes: Any) -> DoseResponseRequest:
    request = DoseResponseRequest(
        planted_vector(engine), PROMPTS[:3], neutral=PROMPTS[:1], strengths=(-1.0, 1.0), layers=(2,),
        random_directions=1, sampling=SAMPLING,
    )  # fmt: skip
    return replace(request, **changes)


async def test_a_judge_reads_the_answers_of_a_dose_response(engine: LinearEngine) -> None:
    questions: list[str] = []

    def rule(question: str) -> str:
        questions.append(question)
        return "Rating: 1"

    seen: list[tuple[int, int, str]] = []
    judging = Judging(Reading(rule), "good mood")
    found = await dose_response(engine, asked_of(engine, judging=judging), progress=lambda *step: seen.append(step))
    plain = await dose_response(engine, asked_of(engine))
    assert found.model_copy(update={"judgement": None}) == plain, "a judge changes nothing else"
    judged = present(found.judgement)
    assert judged.warnings[-1].startswith(
        "the judge gave every answer the same rating for concept, instruction, fluency"
    )
    assert plain.judgement is None
    assert [point.strength for point in judged.points] == [-1.0, 0.0, 1.0]
    assert all((point.judged, present(point.overall).mean) == (3, 1.0) for point in judged.points)
    assert len(questions) == 3 * 3 * 3
    assert sum("<instruction>\nthe road\n</instruction>" in question for question in questions) == 3
    assert len({question.partition("<text>")[2] for question in questions}) == 3 * 3, "each answer is shown"
    assert seen[-1][0] == seen[-1][1]
    assert [one[0] for one in seen] == sorted(one[0] for one in seen)


async def test_a_silent_judge_leaves_the_evaluation_standing_and_a_warning(engine: LinearEngine) -> None:
    found = await dose_response(engine, asked_of(engine, judging=Judging(Reading(lambda _: None), "mood")))
    assert all((point.overall, point.failed) == (None, 3) for point in present(found.judgement).points)
    assert "27 of 27 ratings of the judge could not be had (27 unreachable)" in present(found.judgement).warnings[-1]
    assert len(found.points) == 3


class SayingEngine(ScriptedEngine):
    """Says one thing to everybody; where it is an error, that is raised."""

    def __init__(self, says: str | Exception) -> None:
        super().__init__()
        self.says, self.requests = says, list[GenerationRequest]()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.requests.append(request)
        if isinstance(self.says, Exception):
            raise self.says
        yield TokenEvent(0, 256, self.says)
        yield TokenEvent(1, -1, "", finish=Finish("stop", 1, 1, 0, SteeringReport()))


async def test_the_loaded_model_judges_unsteered_greedy_and_behind_live_traffic() -> None:
    engine = SayingEngine("Rating: 2")
    assert await EngineJudge(engine).ask("How is it?") == "Rating: 2"
    (request,) = engine.requests
    assert request.prompt == (ChatMessage("user", "How is it?"),)
    assert (request.plan.empty, request.sampling.temperature, request.priority) == (True, 0.0, 1)
    assert set(request.sampling.logit_bias) == set(b"012"), "the tokens of the three digits"


async def test_a_real_model_says_one_of_the_three_digits(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        replies = [await EngineJudge(engine).ask(f"Is {word} a word?") for word in ("road", "joy", "train", "q")]
    assert all(rating(reply) is not None for reply in replies), replies


async def test_a_question_too_long_for_the_loaded_model_is_a_failure_and_not_the_end() -> None:
    engine = SayingEngine(ContextLengthExceeded("too long"))
    found = await judge_answers(Judging(EngineJudge(engine), "joy"), ["a"], {1.0: ["b"]})
    assert found.failures == {"unreachable": 3}


def test_a_judge_is_described_by_its_concept(engine: LinearEngine) -> None:
    chat = (ChatMessage("system", "s"), ChatMessage("user", "u"), ChatMessage("assistant", "a"))
    assert instruction_of("plain", engine.tokenizer) == "plain"
    assert instruction_of(chat, engine.tokenizer) == "u"
    assert instruction_of(chat[:1], engine.tokenizer) == "s"
    ids = engine.tokenizer.encode("the road")
    assert instruction_of(ids, engine.tokenizer) == engine.tokenizer.decode(ids)
