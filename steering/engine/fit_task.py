"""FitTask: a direction to be fitted by gradient against the frozen model."""

from dataclasses import dataclass
from math import inf, isfinite

from steering.errors import InvalidRequest, LimitExceeded
from steering.model.info import ModelInfo
from steering.shapes import Direction

MAX_TEXT_TOKENS = 512
"""Tokens of the longest text: its forward pass is one piece of work, which running requests wait for."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A ContrastivePair in tokens. Tokens from `start` on are scored, in both texts; those before are given."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class NeutralText:
    """A text that has nothing to do with the concept. The predictions for its tokens from `start` on should not change."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class FitTask:
    """A direction d to be fitted by gradient.

    s * amount * d, added after block `layer` at every position, should make the positive texts more likely than the
    negative ones for s > 0, and less likely for s < 0.

    amount: residual units at strength 1. initial: (d_model,) where to start, of any length; a random direction if None.
    steps: how often d is changed, each time by `batch` pairs. learning_rate: how far a step may turn it, in radians.
    strengths: |s| is drawn evenly from this range, which lies above 0. neutral, kl_coefficient: weight in the loss of a
    nat of divergence per token of neutral text, under strengths of both signs.
    """

    pairs: tuple[TokenPair, ...]
    layer: int
    amount: float
    neutral: tuple[NeutralText, ...] = ()
    kl_coefficient: float = 1.0
    initial: Direction | None = None
    steps: int = 100
    batch: int = 4
    learning_rate: float = 0.1
    strengths: tuple[float, float] = (0.25, 1.0)
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class FittedDirection:
    """direction (d_model,): unit, float32, on the host. losses: mean loss of each step, before it."""

    direction: Direction
    losses: tuple[float, ...]


def check_task(task: FitTask, info: ModelInfo) -> None:
    """Raises InvalidRequest for what cannot be fitted, LimitExceeded for texts of more than MAX_TEXT_TOKENS."""
    if not 0 <= task.layer < info.layer_count:
        raise InvalidRequest(
            f"layer {task.layer} does not exist; the model has layers 0 to {info.layer_count - 1}", param="layers"
        )
    _check_texts(task, min(MAX_TEXT_TOKENS, info.context_length))
    low, high = task.strengths
    if not 0.0 < low <= high < inf:
        raise InvalidRequest(f"strengths must lie above 0, low to high, got {low} to {high}", param="strengths")
    if not 0.0 <= task.kl_coefficient < inf:
        raise InvalidRequest(
            f"kl_coefficient must be finite and not negative, got {task.kl_coefficient}", param="kl_coefficient"
        )
    for name in ("amount", "learning_rate", "steps", "batch"):
        value = getattr(task, name)
        if not (isfinite(value) and value > 0):
            raise InvalidRequest(f"{name} must be above 0, got {value}", param=name)
    if task.initial is not None:
        shape, length = tuple(task.initial.shape), float(task.initial.norm())
        if shape != (info.d_model,) or not 0.0 < length < inf:
            raise InvalidRequest(
                f"the initial direction must be {info.d_model} finite numbers, not all 0, got shape {shape}",
                param="initial",
            )


def _check_texts(task: FitTask, limit: int) -> None:
    if not task.pairs:
        raise InvalidRequest("a direction is fitted on at least one pair", param="pairs")
    spans = [(pair.start, ids) for pair in task.pairs for ids in (pair.positive, pair.negative)]
    for start, ids in [*spans, *((text.start, text.ids) for text in task.neutral)]:
        if not 1 <= start < len(ids):
            raise InvalidRequest(f"start {start} leaves no token to score in a text of {len(ids)}", param="pairs")
        if len(ids) > limit:
            raise LimitExceeded(f"a text has {len(ids)} tokens; at most {limit} can be fitted on", param="pairs")
