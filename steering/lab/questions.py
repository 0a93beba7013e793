"""Multiple-choice questions of our own: does the model still know what it knew?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt
from steering.engine.prompts import encode_steered
from steering.plan.types import SteeringPlan
from steering.threads import run_in_thread
from steering.workflows.measures import predicting, shared_prefix, surprises
from steering.workflows.texts import as_prompts

CHANCE = 0.25


@dataclass(frozen=True, slots=True)
class Question:
    """A question with four options, the right one first."""

    text: str
    options: tuple[str, ...]


@cache
def load_questions() -> tuple[Question, ...]:
    """Reads the questions that come with the package."""
    lines = (files("steering.lab") / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return tuple(Question(one["question"], (one["answer"], *one["others"])) for one in found)


async def accuracy(engine: Engine, questions: Sequence[Question], plan: SteeringPlan) -> float:
    """Returns the share of questions whose right option has the highest mean log-probability per token as the answer."""
    prompts = as_prompts(engine, [f"{one.text} Answer in a few words." for one in questions])
    right = []
    for question, prompt in zip(questions, prompts, strict=True):
        values = await _surprises(engine, prompt, question.options, plan)
        right.append(float(values[0] < min(values[1:])))
    return fmean(right)


async def _surprises(engine: Engine, prompt: Prompt, options: Sequence[str], plan: SteeringPlan) -> list[float]:
    """Mean -log p per token of each option after the prompt, in nats."""
    before, plan = await encode_steered(engine.tokenizer, prompt, plan)
    space = "" if engine.info.chat_template else " "
    answers = [_answer_ids(engine, f"{space}{option[:1].upper()}{option[1:]}") for option in options]
    captures = await engine.capture(
        [CapturePrompt(before + ids, plan, len(before), first=len(before) - 1) for ids in answers],
        CaptureSpec(layers=(), logits=True),
    )
    return [
        fmean(await run_in_thread(surprises, predicting(capture, len(ids)), ids))
        for ids, capture in zip(answers, captures, strict=True)
    ]


def _answer_ids(engine: Engine, text: str) -> tuple[int, ...]:
    """The tokens of an answer without those that begin every text, which are what two different letters have in common."""
    one, other = engine.tokenizer.encode("a"), engine.tokenizer.encode("b")
    begins = max(min(shared_prefix(one, other), len(one) - 1, len(other) - 1), 0)
    return engine.tokenizer.encode(text)[begins:]
