"""Fits a direction by gradient against the frozen model, in pieces that run between the passes of live requests."""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

import torch
from torch.nn.functional import normalize, softplus

from steering.engine.fit_task import FitTask, FittedDirection
from steering.engine.transformers.training.gradient_pass import GradientPass, Measured, Pieces, ScoredText
from steering.shapes import Direction, Float, Tensor

MAX_BATCH_TOKENS = 256
"""Positions of a batch of texts, padding included; a longer text is a batch by itself.

With 64, a fit takes 1.4 to 1.7 times as long; a stream that runs meanwhile has gaps of 45 ms at p99, with 256 of 66 ms (two cores, AMD EPYC,
SmolLM2-135M).
"""
BETA = 0.1
"""Scale of the log-likelihood ratios, as in DPO (Rafailov et al., arXiv 2305.18290)."""
LIKELIHOOD_WEIGHT = 0.3
"""Weight of the mean log-likelihood of the preferred text, which keeps it fluent."""
BETAS = (0.9, 0.99)

Measure: TypeAlias = Callable[[Sequence[ScoredText], int, Direction], Pieces]


def fit(task: FitTask, passes: GradientPass, d_model: int) -> Generator[int | None, None, FittedDirection]:
    """Runs the whole fit. Yields None after a piece, the number of finished steps after a step.

    The pieces depend on the task alone, so the same task gives the same direction whatever else is served meanwhile.
    """
    rng = random.Random(task.seed)  # noqa: S311 - a reproducible draw, no secret
    direction = _initial(task, d_model)
    optimizer = SphereAdam(task.learning_rate, task.steps)
    texts = [ScoredText(ids, pair.start, 0.0) for pair in task.pairs for ids in (pair.positive, pair.negative)]
    plain, _ = yield from _batched(passes.score, texts, task.layer, direction)
    pairs, others, losses = _endless(len(task.pairs), rng), _endless(len(task.neutral), rng), list[float]()
    for step in range(task.steps):
        drawn = [(next(pairs), rng.uniform(*task.strengths)) for _ in range(task.batch)]
        texts, unsteered = _steered(task, drawn, plain)
        likelihoods, slopes = yield from _batched(passes.score, texts, task.layer, direction)
        lengths = torch.tensor([float(text.scored) for text in texts])
        loss, weights = _preference_loss(likelihoods, unsteered, lengths)
        gradient = weights @ slopes
        if task.neutral:
            texts = [_neutral(task, next(others), rng) for _ in range(max(1, task.batch // 2))]
            divergences, slopes = yield from _batched(passes.diverge, texts, task.layer, direction)
            loss += task.kl_coefficient * float(divergences.mean())
            gradient = gradient + task.kl_coefficient * slopes.mean(0)
        direction = optimizer.step(direction, gradient)
        losses.append(loss)
        yield step + 1
    return FittedDirection(direction, tuple(losses))


def _initial(task: FitTask, d_model: int) -> Direction:
    start = task.initial
    if start is None:
        start = torch.randn(d_model, generator=torch.Generator().manual_seed(task.seed % 2**63))
    return normalize(start.detach().cpu().float(), dim=0)


def _endless(count: int, rng: random.Random) -> Iterator[int]:
    """Yields every index once in random order, then again in another."""
    while count:
        yield from rng.sample(range(count), count)


def _steered(
    task: FitTask, drawn: Sequence[tuple[int, float]], plain: Float[Tensor, "text"]
) -> tuple[list[ScoredText], Float[Tensor, "drawn"]]:
    """Returns the texts of one step, preferred and rejected in turn, and their unsteered log-likelihoods.

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


def _neutral(task: FitTask, index: int, rng: random.Random) -> ScoredText:
    """Returns a neutral text with a strength of either sign."""
    neutral = task.neutral[index]
    return ScoredText(neutral.ids, neutral.start, rng.choice((-1.0, 1.0)) * rng.uniform(*task.strengths) * task.amount)


def _batched(
    measure: Measure, texts: Sequence[ScoredText], layer: int, direction: Direction
) -> Generator[None, None, Measured]:
    """Measures texts batch by batch; returns the results in the order of the texts."""
    values = torch.zeros(len(texts))
    gradients = torch.zeros(len(texts), len(direction))
    for rows in _batches(texts):
        values[rows], gradients[rows] = yield from measure([texts[row] for row in rows], layer, direction)
        yield
    return values, gradients


def _batches(texts: Sequence[ScoredText]) -> list[list[int]]:
    """Returns indices of texts of similar length, as many together as fit into a batch."""
    batches: list[list[int]] = []
    for row in sorted(range(len(texts)), key=lambda row: (-len(texts[row].ids), row)):
        if batches and len(texts[batches[-1][0]].ids) * (len(batches[-1]) + 1) <= MAX_BATCH_TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _preference_loss(
    steered: Float[Tensor, "text"], unsteered: Float[Tensor, "text"], scored: Float[Tensor, "text"]
) -> tuple[float, Float[Tensor, "text"]]:
    """Returns the loss and its derivative by each steered likelihood (text,).

    Of texts that alternate, preferred, rejected, preferred, ...: log-likelihoods of their scored tokens in nats, and how many
    tokens those are.
    gain = (l_preferred - l0_preferred) - (l_rejected - l0_rejected);  loss = softplus(-beta gain) - lambda l_preferred / n,
    mean over the pairs.
    """
    gained = steered - unsteered
    gain = BETA * (gained[0::2] - gained[1::2])
    pull = BETA * torch.sigmoid(-gain)
    weight = LIKELIHOOD_WEIGHT / scored[0::2]
    loss = softplus(-gain) - weight * steered[0::2]
    return float(loss.mean()), torch.stack([-pull - weight, pull], dim=1).reshape(-1) / len(gain)


class SphereAdam:
    """Adam over unit directions, with a rate that falls to 0 linearly.

    Not torch.optim.Adam: its first use imports the compiler, which takes 1.1 s of the engine's thread.
    """

    def __init__(self, rate: float, steps: int) -> None:
        self._rate, self._steps, self._count = rate, steps, 0
        self._first = self._second = torch.zeros(())

    def step(self, direction: Direction, gradient: Direction) -> Direction:
        """Moves a unit direction (d_model,) against the part of the gradient that turns it."""
        gradient = gradient - (gradient @ direction) * direction
        self._first = BETAS[0] * self._first + (1 - BETAS[0]) * gradient
        self._second = BETAS[1] * self._second + (1 - BETAS[1]) * gradient.square()
        rate = self._rate * (1 - self._count / self._steps)
        self._count += 1
        first = self._first / (1 - BETAS[0] ** self._count)
        second = self._second / (1 - BETAS[1] ** self._count)
        return normalize(direction - rate * first / (second.sqrt() + 1e-12), dim=0)
