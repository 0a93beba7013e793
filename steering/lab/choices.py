"""Multiple choice on a caller's own items: how often the answer is picked, its log odds, and what is due to letters and positions.

As in CAA (Rimsky et al., arXiv 2312.06681) the choices stand under letters, and the model's answer is begun with "(". Each question is
asked twice, the second time with the choices in reverse, so that a preference for a letter or a position cancels.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import exp
from string import ascii_uppercase

import numpy as np

from steering.engine.api import CapturePrompt, Engine, Prompt
from steering.pairs import ChatMessage, continued
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.choices import (
    ChoiceEstimates,
    ChoiceItem,
    ChoiceItemAnswer,
    ChoicesAnswer,
    ChoiceScores,
    ChoicesSummary,
)
from steering.threads import run_in_thread
from steering.workflows.generate import Progress, ignore_progress
from steering.workflows.logprobs import continuation_rows, score
from steering.workflows.measures import estimate

BEGUN = "("
"""How the answer begins; the letter comes next."""
ITEMS_AT_ONCE = 16
"""Items whose rows are held and read at a time."""


@dataclass(frozen=True, slots=True)
class Picked:
    """One item under one plan. letters: the most probable letter in each order."""

    scores: ChoiceScores
    letters: tuple[str, ...]


def orders(item: ChoiceItem) -> tuple[tuple[int, ...], ...]:
    """Returns the orders in which an item is asked: the indices of the choices, as given and in reverse."""
    given = tuple(range(len(item.choices)))
    return given, given[::-1]


def prompt_of(engine: Engine, item: ChoiceItem, order: Sequence[int]) -> Prompt:
    """Writes a question with its choices in an order, and the beginning of the answer."""
    lines = [f" ({letter}) {item.choices[index]}" for letter, index in zip(ascii_uppercase, order, strict=False)]
    text = "\n".join([item.question, "", "Choices:", *lines])
    if engine.info.chat_template:
        return continued((ChatMessage("user", text), ChatMessage("assistant", BEGUN)))
    return f"{text}\n\nAnswer: {BEGUN}"


def rows(engine: Engine, items: Sequence[ChoiceItem], plan: SteeringPlan) -> Iterator[CapturePrompt]:
    """Yields the rows to read: of each item in each order, one for each letter. Raises what `continuation_rows` raises."""
    for item in items:
        for order in orders(item):
            letters = ascii_uppercase[: len(order)]
            yield from continuation_rows(engine, prompt_of(engine, item, order), letters, plan, "items")


async def measure(
    engine: Engine, items: Sequence[ChoiceItem], plan: SteeringPlan, *, progress: Progress = ignore_progress
) -> ChoicesAnswer:
    """Measures the items without steering and, unless the plan is empty, with it. Raises what `Engine.capture` raises."""
    plans = [UNSTEERED] if plan.empty else [UNSTEERED, plan]
    found: list[list[Picked]] = [[] for _ in plans]
    warnings = dict.fromkeys(plan.warnings)
    for start in range(0, len(items), ITEMS_AT_ONCE):
        part = items[start : start + ITEMS_AT_ONCE]
        for one, picked in zip(plans, found, strict=True):
            asked: list[CapturePrompt] = await run_in_thread(list, rows(engine, part, one))
            warnings |= dict.fromkeys(note for row in asked for note in row.plan.warnings)
            values = iter([row.sum for row in await score(engine, asked, priority=1)])
            picked += [_picked(item, [[next(values) for _ in order] for order in orders(item)]) for item in part]
        progress(min(start + len(part), len(items)), len(items), "reading choices")
    unsteered, steered = found[0], found[1] if len(found) > 1 else None
    return ChoicesAnswer(
        model=engine.info.name,
        interventions=list(plan.spec.interventions[: plan.own]),
        fingerprint=plan.fingerprint,
        unsteered=_summary(unsteered),
        steered=None if steered is None else _summary(steered),
        change=None
        if steered is None
        else _estimates([one.scores for one in steered], [one.scores for one in unsteered]),
        items=[
            ChoiceItemAnswer(unsteered=one.scores, steered=None if steered is None else steered[index].scores)
            for index, one in enumerate(unsteered)
        ],
        warnings=list(warnings),
    )


def _picked(item: ChoiceItem, logprobs: Sequence[Sequence[float]]) -> Picked:
    """logprobs: of the letters, by order."""
    places = [int(np.argmax(row)) for row in logprobs]
    picked = [order[place] for order, place in zip(orders(item), places, strict=True)]
    odds = []
    for order, row in zip(orders(item), logprobs, strict=True):
        at = order.index(item.answer)
        odds.append(row[at] - float(np.logaddexp.reduce([*row[:at], *row[at + 1 :]])))
    scores = ChoiceScores(
        match=float(np.mean([one == item.answer for one in picked])),
        log_odds=float(np.mean(odds)),
        mass=float(np.mean([min(exp(np.logaddexp.reduce(row)), 1.0) for row in logprobs])),
        agree=float(len(set(picked)) == 1),
    )
    return Picked(scores, tuple(ascii_uppercase[place] for place in places))


def _estimates(scores: Sequence[ChoiceScores], before: Sequence[ChoiceScores] | None = None) -> ChoiceEstimates:
    """Estimates the means over the items; with `before` those of the differences, item by item."""
    values = {name: np.array([getattr(one, name) for one in scores]) for name in ChoiceScores.model_fields}
    for name in values if before is not None else ():
        values[name] = values[name] - np.array([getattr(one, name) for one in before or ()])
    return ChoiceEstimates(**{name: estimate(one.tolist()) for name, one in values.items()})


def _summary(found: Sequence[Picked]) -> ChoicesSummary:
    counts = Counter(chain.from_iterable(one.letters for one in found))
    letters = {letter: count / counts.total() for letter, count in sorted(counts.items())}
    return ChoicesSummary(**dict(_estimates([one.scores for one in found])), letters=letters)
