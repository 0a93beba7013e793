"""Fitting: a direction trained by gradient against the frozen model, cut into pieces that fit between the steps of others."""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from math import isfinite
from typing import Protocol, TypeAlias

import torch

from steering.engine.fit_task import FitTask, FittedDirection
from steering.engine.transformers.training.gradient_pass import ScoredText
from steering.engine.transformers.training.preference import Likelihoods, SphereOptimizer, preference
from steering.errors import InvalidRequest, LimitExceeded
from steering.model.info import ModelInfo
from steering.shapes import Direction, Float, Tensor

PIECE_SHARE = 4
"""A piece goes forward and back, which takes about three times as long as a prefill of as many positions."""
LONGEST = 512
"""Tokens of the longest text: a piece is one text at least, and others wait for as long as it takes."""
Turns: TypeAlias = Generator[int | None, None, FittedDirection]


Measured: TypeAlias = tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]
"""A number a text, and its gradient by the direction."""
Measure: TypeAlias = Callable[[Sequence[ScoredText], int, Direction], Measured]


class Passes(Protocol):
    """What a fit asks of the model; see GradientPass."""

    def score(self, texts: Sequence[ScoredText], layer: int, direction: Direction) -> Measured: ...

    def diverge(self, texts: Sequence[ScoredText], layer: int, direction: Direction) -> Measured: ...


def check_task(task: FitTask, info: ModelInfo) -> None:
    """Raises InvalidRequest for what cannot be fitted, LimitExceeded for texts of more than LONGEST tokens."""
    if not 0 <= task.layer < info.layer_count:
        raise InvalidRequest(
            f"layer {task.layer} does not exist; the model has layers 0 to {info.layer_count - 1}", param="layers"
        )
    if not task.pairs:
        raise InvalidRequest("a direction is fitted on at least one pair", param="pairs")
    limit = min(LONGEST, info.context_length)
    spans = [(pair.start, ids) for pair in task.pairs for ids in (pair.positive, pair.negative)]
    for start, ids in [*spans, *((text.start, text.ids) for text in task.neutral)]:
        if not 1 <= start < len(ids):
            raise InvalidRequest(f"start {start} leaves no token to score in a text of {len(ids)}", param="pairs")
        if len(ids) > limit:
            raise LimitExceeded(f"a text has {len(ids)} tokens; at most {limit} can be fitted on", param="pairs")
    low, high = task.strengths
    if not 0.0 < low <= high < float("inf"):
        raise InvalidRequest(f"strengths must lie above 0, low to high, got {low} to {high}", param="strengths")
    if not 0.0 <= task.kl_coefficient < float("inf"):
        raise InvalidRequest(
            f"kl_coefficient must be finite and not negative, got {task.kl_coefficient}", param="kl_coefficient"
        )
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


def turns(task: FitTask, passes: Passes, d_model: int, tokens: int) -> Turns:
    """The whole fit, one piece of at most `tokens` positions (or one text) a turn; yields the number of finished steps.

    The pieces depend on the task alone, so the same task gives the same direction whoever else is served meanwhile.
    """
    rng = random.Random(task.seed)  # noqa: S311 - a reproducible draw, no secret
    direction = _initial(task, d_model)
    descent = SphereOptimizer(task.learning_rate, task.steps)
    texts = [ScoredText(ids, pair.start, 0.0) for pair in task.pairs for ids in (pair.positive, pair.negative)]
    plain, _ = yield from _measured(passes.score, texts, task.layer, direction, tokens)
    pairs, others, losses = _endless(len(task.pairs), rng), _endless(len(task.neutral), rng), list[float]()
    for step in range(task.steps):
        drawn = [(next(pairs), rng.uniform(*task.strengths)) for _ in range(task.batch)]
        texts, unsteered = _steered(task, drawn, plain)
        likelihoods, slopes = yield from _measured(passes.score, texts, task.layer, direction, tokens)
        lengths = torch.tensor([float(text.scored) for text in texts])
        loss, weights = preference(Likelihoods(likelihoods, unsteered, lengths))
        gradient = weights @ slopes
        if task.neutral:
            texts = [_bystander(task, next(others), rng) for _ in range(max(1, task.batch // 2))]
            damage, slopes = yield from _measured(passes.diverge, texts, task.layer, direction, tokens)
            loss += task.kl_coefficient * float(damage.mean())
            gradient = gradient + task.kl_coefficient * slopes.mean(0)
        direction = descent.step(direction, gradient)
        losses.append(loss)
        yield step + 1
    return FittedDirection(direction, tuple(losses))


def _initial(task: FitTask, d_model: int) -> Direction:
    start = task.initial
    if start is None:
        start = torch.randn(d_model, generator=torch.Generator().manual_seed(task.seed % 2**63))
    return torch.nn.functional.normalize(start.detach().cpu().float(), dim=0)


def _endless(count: int, rng: random.Random) -> Iterator[int]:
    """Every index once in random order, then again in another."""
    while count:
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


def _bystander(task: FitTask, index: int, rng: random.Random) -> ScoredText:
    """A neutral text, with a strength of either sign."""
    neutral = task.neutral[index]
    return ScoredText(neutral.ids, neutral.start, rng.choice((-1.0, 1.0)) * rng.uniform(*task.strengths) * task.amount)


def _measured(
    measure: Measure, texts: Sequence[ScoredText], layer: int, direction: Direction, tokens: int
) -> Generator[None, None, Measured]:
    """What `measure` says of the texts, in their order; a turn before every piece."""
    values = torch.zeros(len(texts))
    gradients = torch.zeros(len(texts), len(direction))
    for rows in _pieces(texts, tokens):
        yield
        values[rows], gradients[rows] = measure([texts[row] for row in rows], layer, direction)
    return values, gradients


def _pieces(texts: Sequence[ScoredText], tokens: int) -> list[list[int]]:
    """Indices of texts of like length, as many together as fit, padding included."""
    pieces: list[list[int]] = []
    for row in sorted(range(len(texts)), key=lambda row: (-len(texts[row].ids), row)):
        if pieces and len(texts[pieces[-1][0]].ids) * (len(pieces[-1]) + 1) <= tokens:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces
