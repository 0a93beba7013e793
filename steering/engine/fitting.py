"""Fitting: a direction trained by gradient against the frozen model, cut into pieces that fit between the steps of others."""

import random
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol, TypeAlias

import torch

from steering.engine.base import FitTask, FittedDirection
from steering.engine.gradient_pass import ScoredText
from steering.engine.preference import Likelihoods, SphereDescent, preference
from steering.engine.sequence import Stream
from steering.errors import InvalidRequest, LimitExceeded
from steering.model.info import ModelInfo
from steering.shapes import Direction, Float, Tensor

TURN = 4
"""While rows are running, every fourth turn of the loop fits a piece."""
PIECE_SHARE = 4
"""A piece goes forward and back, which takes about three times as long as a prefill of as many positions."""
LONGEST = 512
"""Tokens of the longest text: a piece is one text at least, and others wait for as long as it takes."""
Turns: TypeAlias = Generator[int, None, FittedDirection]
Work: TypeAlias = Generator[int, None, FittedDirection] | Generator[int, None, Tensor]


class Scorer(Protocol):
    """What a fit asks of the model; see GradientPass.score."""

    def score(
        self, texts: Sequence[ScoredText], layer: int, direction: Direction
    ) -> tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]: ...


def check_task(task: FitTask, info: ModelInfo) -> None:
    """Raises InvalidRequest for what cannot be fitted, LimitExceeded for texts of more than LONGEST tokens."""
    if not 0 <= task.layer < info.layer_count:
        raise InvalidRequest(
            f"layer {task.layer} does not exist; the model has layers 0 to {info.layer_count - 1}", param="layers"
        )
    if not task.pairs:
        raise InvalidRequest("a direction is fitted on at least one pair", param="pairs")
    for pair in task.pairs:
        shorter, longer = sorted((len(pair.positive), len(pair.negative)))
        if not 1 <= pair.start < shorter:
            raise InvalidRequest(f"start {pair.start} leaves no token to score in a text of {shorter}", param="pairs")
        limit = min(LONGEST, info.context_length)
        if longer > limit:
            raise LimitExceeded(f"a text has {longer} tokens; at most {limit} can be fitted on", param="pairs")
    low, high = task.strengths
    if not 0.0 < low <= high < float("inf"):
        raise InvalidRequest(f"strengths must lie above 0, low to high, got {low} to {high}", param="strengths")
    for name in ("amount", "learning_rate", "steps", "batch"):
        value = getattr(task, name)
        if not (isfinite(value) and value > 0):
            raise InvalidRequest(f"{name} must be above 0, got {value}", param=name)
    if task.initial is not None:
        shape, length = tuple(task.initial.shape), float(task.initial.norm())
        if shape != (info.d_model,) or not 0.0 < length < float("inf"):
            raise InvalidRequest(
                f"the initial direction must be {info.d_model} finite numbers, not all 0, got shape {shape}",
                param="initial",
            )


def turns(task: FitTask, passes: Scorer, d_model: int, tokens: int) -> Turns:
    """The whole fit, one piece of at most `tokens` positions (or one text) a turn; yields the number of finished steps.

    The pieces depend on the task alone, so the same task gives the same direction whoever else is served meanwhile.
    """
    rng = random.Random(task.seed)  # noqa: S311 - a reproducible draw, no secret
    direction = _initial(task, d_model)
    descent = SphereDescent(task.learning_rate, task.steps)
    texts = [ScoredText(ids, pair.start, 0.0) for pair in task.pairs for ids in (pair.positive, pair.negative)]
    plain, _ = yield from _scored(texts, task, passes, direction, tokens, 0)
    order, losses = _endless(len(task.pairs), rng), list[float]()
    for step in range(task.steps):
        drawn = [(next(order), rng.uniform(*task.strengths)) for _ in range(task.batch)]
        texts, unsteered = _steered(task, drawn, plain)
        likelihoods, gradients = yield from _scored(texts, task, passes, direction, tokens, step)
        scored = torch.tensor([float(text.scored) for text in texts])
        loss, slopes = preference(Likelihoods(likelihoods, unsteered, scored))
        direction = descent.step(direction, slopes @ gradients)
        losses.append(loss)
        yield step + 1
    return FittedDirection(direction, tuple(losses))


def _initial(task: FitTask, d_model: int) -> Direction:
    start = task.initial
    if start is None:
        start = torch.randn(d_model, generator=torch.Generator().manual_seed(task.seed % 2**63))
    return torch.nn.functional.normalize(start.detach().cpu().float(), dim=0)


def _endless(count: int, rng: random.Random) -> Iterator[int]:
    """Every pair once in random order, then again in another."""
    while True:
        yield from rng.sample(range(count), count)


def _steered(
    task: FitTask, drawn: Sequence[tuple[int, float]], plain: Float[Tensor, "text"]
) -> tuple[list[ScoredText], Float[Tensor, "text"]]:
    """The texts of one step, preferred and rejected in turn, with what each scores unsteered.

    Every pair comes with both signs of its strength: added, its positive text is preferred; subtracted, its negative.
    """
    texts: list[ScoredText] = []
    rows: list[int] = []
    for index, strength in drawn:
        pair, amount = task.pairs[index], strength * task.amount
        positive, negative = 2 * index, 2 * index + 1
        texts += [ScoredText(ids, pair.start, amount) for ids in (pair.positive, pair.negative)]
        texts += [ScoredText(ids, pair.start, -amount) for ids in (pair.negative, pair.positive)]
        rows += [positive, negative, negative, positive]
    return texts, plain[rows]


def _scored(
    texts: Sequence[ScoredText], task: FitTask, passes: Scorer, direction: Direction, tokens: int, step: int
) -> Generator[int, None, tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]]:
    """Likelihoods and gradients of the texts in their order, a piece a turn; the turn of the last piece goes on."""
    likelihoods = torch.zeros(len(texts))
    gradients = torch.zeros(len(texts), len(direction))
    pieces = _pieces(texts, tokens)
    for number, rows in enumerate(pieces):
        if number:
            yield step
        likelihoods[rows], gradients[rows] = passes.score([texts[row] for row in rows], task.layer, direction)
    return likelihoods, gradients


def _pieces(texts: Sequence[ScoredText], tokens: int) -> list[list[int]]:
    """Indices of texts of like length, as many together as fit, padding included."""
    pieces: list[list[int]] = []
    for row in sorted(range(len(texts)), key=lambda row: (-len(texts[row].ids), row)):
        if pieces and len(texts[pieces[-1][0]].ids) * (len(pieces[-1]) + 1) <= tokens:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces


@dataclass(slots=True, eq=False)
class Fitting:
    """One fit, from the queue to its direction; or other work in pieces, to its tensor. outbox: numbers of finished steps,
    then the result or an error. priority 0: somebody waits for it, so it goes before every fit."""

    stream: Stream
    turns: Work
    outbox: list[object] = field(default_factory=list)
    done: int = 0
    priority: int = 1

    def advance(self) -> bool:
        """One piece; True when it was the last. Raises what the pass raises."""
        try:
            done = next(self.turns)
        except StopIteration as ended:
            self.outbox.append(ended.value)
            return True
        if done > self.done:
            self.done = done
            self.outbox.append(done)
        return False


class FittingQueue:
    """Fits in the order they came; the first is worked on, in turns that leave room for live traffic."""

    def __init__(self) -> None:
        self.waiting: deque[Fitting] = deque()
        self._turn = 0

    def enqueue(self, fitting: Fitting) -> None:
        if fitting.priority:
            self.waiting.append(fitting)
        else:
            self.waiting.appendleft(fitting)

    def next(self, *, beside: bool) -> Fitting | None:
        """The fit whose turn it is, if it is one's turn; beside: whether sequences are running. Who left is dropped."""
        for gone in [fitting for fitting in self.waiting if fitting.stream.closed]:
            self.end(gone)
        self._turn += 1
        if not self.waiting or (beside and self._turn % TURN):
            return None
        return self.waiting[0]

    def end(self, fitting: Fitting) -> None:
        """A fit is over, or given up."""
        fitting.turns.close()
        self.waiting.remove(fitting)
