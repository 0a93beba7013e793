"""Multiple choice on a caller's own items: how often the answer is picked, its log odds, and what is due to letters and positions.

As in CAA (Rimsky et al., arXiv 2312.06681) the choices stand under letters, and the model's answer is begun with "(". Each question is
asked in every rotation of its choices, so that each choice stands once under each letter.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import exp
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from steering.cards import Estimate
from steering.engine.api import Engine, Prompt, Tokenizer
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage, continued
from steering.plan.types import SteeringPlan
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
from steering.workflows.logprobs import EncodedPrompt, continuation_ids, encode_continued, next_logprobs
from steering.workflows.measures import difference_of_shares, estimate, share
from steering.workflows.readout import grouped

BEGUN = "("
"""How the answer begins; the letter comes next."""
SHARES = ("accuracy", "consistency")
"""Scores of an item that count its rotations: a share, and 0 or 1."""
PROMPTS_AT_ONCE = 64
"""Prompts that are held and read at a time; the rotations of one item stay together."""


@dataclass(frozen=True, slots=True)
class Picked:
    """One item under one plan. letters: the most probable letter in each rotation."""

    scores: ChoiceScores
    letters: tuple[str, ...]


def rotations(item: ChoiceItem) -> tuple[tuple[int, ...], ...]:
    """Returns the orders in which an item is asked, as indices of its choices: each choice stands once at each place."""
    given = tuple(range(len(item.choices)))
    return tuple(given[start:] + given[:start] for start in given)


def letter_tokens(tokenizer: Tokenizer, count: int) -> tuple[int, ...]:
    """Returns the first token of each letter after BEGUN. Raises InvalidRequest where two letters have the same one."""
    before = tokenizer.encode(BEGUN)
    found = tuple(continuation_ids(tokenizer, BEGUN, letter, before)[0] for letter in ascii_uppercase[:count])
    if len(set(found)) < count:
        raise InvalidRequest("the tokenizer of this model writes two of the letters with the same token", param="items")
    return found


def prompt_of(engine: Engine, item: ChoiceItem, order: Sequence[int]) -> Prompt:
    """Writes a question with its choices in an order, and the beginning of the answer."""
    lines = [f" ({letter}) {item.choices[index]}" for letter, index in zip(ascii_uppercase, order, strict=False)]
    text = "\n".join([item.question, "", "Choices:", *lines])
    if engine.info.chat_template:
        return continued((ChatMessage("user", text), ChatMessage("assistant", BEGUN)))
    return f"{text}\n\nAnswer: {BEGUN}"


def item_prompts(engine: Engine, item: ChoiceItem, plans: Sequence[SteeringPlan]) -> list[tuple[EncodedPrompt, ...]]:
    """Returns the prompts of an item, one for each rotation, each under every plan. Raises what `encode_continued` raises."""
    return [encode_continued(engine, prompt_of(engine, item, order), plans) for order in rotations(item)]


async def measure(
    engine: Engine,
    items: Sequence[ChoiceItem],
    plans: Sequence[SteeringPlan],
    *,
    cache_salt: str,
    progress: Progress = ignore_progress,
) -> ChoicesAnswer:
    """Measures the items under plans: unsteered, then steered, if any. Raises what `Engine.capture` raises."""
    found: list[list[Picked]] = [[] for _ in plans]
    warnings = dict.fromkeys(plans[-1].warnings)
    letters = letter_tokens(engine.tokenizer, max(len(item.choices) for item in items))
    done = 0
    for part in grouped(items, lambda item: len(item.choices), PROMPTS_AT_ONCE):
        prompts = await run_in_thread(
            lambda part: [prompt for item in part for prompt in item_prompts(engine, item, plans)], part
        )
        for picked, asked in zip(found, zip(*prompts, strict=True), strict=True):
            warnings |= dict.fromkeys(note for one in asked for note in one.plan.warnings)
            logprobs = iter(await next_logprobs(engine, asked, letters, cache_salt=cache_salt, priority=1))
            picked += [_picked(item, [next(logprobs)[: len(item.choices)] for _ in item.choices]) for item in part]
        done += len(part)
        progress(done, len(items), "reading choices")
    unsteered, steered = found[0], found[1] if len(found) > 1 else None
    tables = [
        np.array([[getattr(one.scores, name) for name in ChoiceScores.model_fields] for one in each]) for each in found
    ]
    return ChoicesAnswer(
        model=engine.info.name,
        interventions=list(plans[-1].spec.interventions[: plans[-1].own]),
        fingerprint=plans[-1].fingerprint,
        unsteered=_summary(unsteered, tables[0]),
        steered=None if steered is None else _summary(steered, tables[1]),
        change=None if steered is None else ChoiceEstimates(**_estimates(tables[1] - tables[0], difference_of_shares)),
        items=[
            ChoiceItemAnswer(unsteered=one.scores, steered=None if steered is None else steered[index].scores)
            for index, one in enumerate(unsteered)
        ],
        warnings=list(warnings),
    )


def _picked(item: ChoiceItem, logprobs: Sequence[Sequence[float]]) -> Picked:
    """logprobs: of the letters, by rotation."""
    places = [int(np.argmax(row)) for row in logprobs]
    picked = [order[place] for order, place in zip(rotations(item), places, strict=True)]
    odds = []
    for order, row in zip(rotations(item), logprobs, strict=True):
        at = order.index(item.answer)
        odds.append(row[at] - float(np.logaddexp.reduce([*row[:at], *row[at + 1 :]])))
    scores = ChoiceScores(
        accuracy=float(np.mean([one == item.answer for one in picked])),
        log_odds=float(np.mean(odds)),
        mass=float(np.mean([min(exp(np.logaddexp.reduce(row)), 1.0) for row in logprobs])),
        consistency=float(len(set(picked)) == 1),
    )
    return Picked(scores, tuple(ascii_uppercase[place] for place in places))


def _estimates(table: NDArray[np.float64], of_share: Callable[[Sequence[float]], Estimate]) -> dict[str, Estimate]:
    """Estimates the means over the items of a table (item, score), by the name of the score. of_share: estimates SHARES."""
    columns = zip(ChoiceScores.model_fields, table.T, strict=True)
    return {name: (of_share if name in SHARES else estimate)(values) for name, values in columns}


def _share(values: Sequence[float]) -> Estimate:
    return share(float(sum(values)), len(values))


def _summary(found: Sequence[Picked], table: NDArray[np.float64]) -> ChoicesSummary:
    counts = Counter(chain.from_iterable(one.letters for one in found))
    offered = ascii_uppercase[: max(len(one.letters) for one in found)]
    letters = {letter: counts[letter] / counts.total() for letter in offered}
    return ChoicesSummary(**_estimates(table, _share), letters=letters)
