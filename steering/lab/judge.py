"""A judge rates answers for concept, instruction and fluency, 0 to 2 each, and their harmonic mean (AxBench, arXiv
2501.17148)."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from statistics import harmonic_mean
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from steering.engine.api import Engine, GenerationRequest, Prompt, SamplingParams, Tokenizer
from steering.errors import ContextLengthExceeded, NonfiniteActivations
from steering.pairs import ChatMessage
from steering.schemas.evaluation import JudgedPointAnswer, JudgementAnswer
from steering.workflows.generate import Progress, background, ignore_progress, mapped
from steering.workflows.measures import estimate
from steering.workflows.texts import question_of

HIGHEST = 2
LONGEST = 4000
"""Characters of an instruction and of an answer that a judge is shown."""
SURELY = 1000.0
"""Added to a logit: further than any two logits lie apart."""
SEVERAL = 6
"""Equal ratings of an aspect from which on a warning says that the judge does not distinguish answers."""
REPLY = 64
"""Tokens of a judge's reply."""
_RANGE = r"\s*(?:[-–]|to)\s*"
_RATING = re.compile(rf"rating\W{{0,8}}(?:0{_RANGE}2\W{{1,8}})?([012])(?!\d|\.\d|{_RANGE}\d)", re.IGNORECASE)
_BARE = re.compile(r"\W*([012])\W*")

ASPECTS: Mapping[str, str] = json.loads((files("steering.lab") / "judge.json").read_text(encoding="utf-8"))
"""What is asked about an answer, one rating each."""


class Unanswered(Exception):
    """A judge could not be asked: nobody there, a refusal, a reply that is none."""


class Judge(Protocol):
    """Somebody who answers a question in words. at_once: how many questions may be open at a time."""

    at_once: int

    async def ask(self, question: str) -> str:
        """Returns the reply. Raises Unanswered."""
        ...


class EngineJudge:
    """The loaded model, unsteered and greedy, held to the digits 0 to 2; a free reply where these are no tokens."""

    at_once = 16

    def __init__(self, engine: Engine) -> None:
        self._engine, tokenizer = engine, engine.tokenizer
        found = {str(value): tokenizer.encode(str(value))[-1:] for value in range(HIGHEST + 1)}
        if any(tokenizer.decode(ids).strip() != digit for digit, ids in found.items()):
            self._sampling = SamplingParams(max_tokens=REPLY)
        else:
            self._sampling = SamplingParams(max_tokens=1, logit_bias={ids[0]: SURELY for ids in found.values()})

    async def ask(self, question: str) -> str:
        """See Judge.ask. Raises what the engine raises when it stops."""
        try:
            (found,) = await background(self._engine, [GenerationRequest(self._prompt(question), self._sampling)])
        except (ContextLengthExceeded, NonfiniteActivations) as error:
            raise Unanswered(error.message) from error
        return found.text

    def tokens(self, concept: str, instructions: Sequence[str], most: int) -> int:
        """Returns the tokens of all questions about one answer of at most `most` tokens to each instruction, and of the replies."""
        total = 0
        for question in (one for instruction in instructions for one in questions_about(concept, instruction, "")):
            with suppress(ContextLengthExceeded):  # it is not asked
                asked = self._engine.tokenizer.encode(self._prompt(question))
                total += len(asked) + most + self._sampling.max_tokens
        return total

    def _prompt(self, question: str) -> Prompt:
        return (ChatMessage("user", question),) if self._engine.info.chat_template else question + "\nRating:"


@dataclass(frozen=True, slots=True, eq=False)
class Judging:
    """What a judge is asked. by: who judges. instructions: the prompts in words; None: taken from the prompts."""

    judge: Judge
    concept: str
    by: Literal["self", "endpoint"] = "self"
    instructions: tuple[str, ...] | None = None


def rating(reply: str) -> int | None:
    """Returns the last rating in a reply, or the reply if it is a digit alone; None where there is none."""
    found = _RATING.findall(reply) or [match[1] for match in [_BARE.fullmatch(reply)] if match]
    return int(found[-1]) if found else None


def instruction_of(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """Returns what was asked, in words: the text, of a transcript the question, the last message of the user, or the decoded ids."""
    if isinstance(prompt, str):
        return question_of(prompt)
    messages = [one for one in prompt if isinstance(one, ChatMessage)]
    if messages:
        return next((one.content for one in reversed(messages) if one.role == "user"), messages[-1].content)
    return tokenizer.decode([one for one in prompt if isinstance(one, int)])


def questions_about(concept: str, instruction: str, answer: str) -> tuple[str, ...]:
    """Returns the three questions, in the order of ASPECTS."""
    words = {"concept": concept, "instruction": instruction[:LONGEST], "answer": answer[:LONGEST]}
    return tuple(text.format(**words) for text in ASPECTS.values())


async def judge_answers(
    judging: Judging,
    instructions: Sequence[str],
    answers: Mapping[float, Sequence[str]],
    *,
    progress: Progress = ignore_progress,
) -> JudgementAnswer:
    """Returns ratings with warnings. answers: strength -> a text for each instruction. Cancelling stops all questions."""
    failures = Counter[str]()
    questions = [
        question
        for texts in answers.values()
        for instruction, text in zip(instructions, texts, strict=True)
        for question in questions_about(judging.concept, instruction, text)
    ]
    total = len(questions)

    async def ask(question: str) -> int | None:
        try:
            found = rating(await judging.judge.ask(question))
        except Unanswered:
            failures["unreachable"] += 1
            return None
        if found is None:
            failures["unreadable"] += 1
        return found

    flat = await mapped(ask, questions, judging.judge.at_once, lambda done: progress(done, total, "judging"))
    # (strength, answer, aspect); NaN where a rating could not be had
    ratings = np.array(flat, dtype=np.float64).reshape(len(answers), len(instructions), len(ASPECTS))
    by_strength = sorted(zip(answers, ratings, strict=True), key=lambda row: row[0])
    warnings = []
    had = [column[~np.isnan(column)] for column in ratings.reshape(-1, len(ASPECTS)).T]
    if alike := [name for name, one in zip(ASPECTS, had, strict=True) if len(one) >= SEVERAL and len(set(one)) == 1]:
        warnings.append(
            f"the judge gave every answer the same rating for {', '.join(alike)}, so it does not distinguish them"
        )
    if lost := sum(failures.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(failures.items()))
        warnings.append(
            f"{lost} of {total} ratings of the judge could not be had ({reasons}); their answers count nowhere"
        )
    return JudgementAnswer(
        by=judging.by,
        concept=judging.concept,
        points=[_point(strength, rows) for strength, rows in by_strength],
        ratings=total,
        failures=dict(failures),
        warnings=tuple(warnings),
    )


def _point(strength: float, ratings: NDArray[np.float64]) -> JudgedPointAnswer:
    """ratings (answer, aspect)."""
    whole = ratings[~np.isnan(ratings).any(axis=1)]
    columns = dict(zip(ASPECTS, whole.T.tolist(), strict=True)) | {"overall": list(map(harmonic_mean, whole.tolist()))}
    means = {name: estimate(column) if column else None for name, column in columns.items()}
    return JudgedPointAnswer(strength=strength, judged=len(whole), failed=len(ratings) - len(whole), **means)
