"""FitTask: a direction to be fitted by gradient against the frozen model."""

from dataclasses import dataclass

from steering.shapes import Direction


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
