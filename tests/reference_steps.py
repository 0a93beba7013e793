"""The steps that the slow reference takes between tokens, in plain Python: the choice of the next one, and controllers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from steering.spec import InterventionSpec, Schedule, StrengthFrom, Threshold, TokenScope
from steering.vectors import ConceptVector, LayerDirection

ZERO = 19091, 138
"""A seed and the token whose uniform number is 0 at index 0."""


def gumbel(seed: int, index: int, vocab: int) -> list[float]:
    """Gumbel noise of every token, from a generator of its own for each seed and index."""
    words = np.random.SFC64(np.random.SeedSequence((seed, index))).random_raw(vocab)
    parts = [part for word in words.tolist() for part in (word & 0xFFFFFFFF, word >> 32)]
    return [-math.log(-math.log(max(part >> 8, 0.5) / 2**24)) for part in parts[:vocab]]


def choose(logits: torch.Tensor, temperature: float, seed: int, index: int) -> int:
    """Returns the argmax of logits / T + Gumbel noise."""
    if temperature == 0.0:
        return int(logits.argmax())
    noise = gumbel(seed, index, len(logits))
    scores = [logit + one for logit, one in zip((logits / temperature).tolist(), noise, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)


def middle(entry: LayerDirection) -> float:
    """Of the class means; 0 where they are not known."""
    if entry.positive_mean is None or entry.negative_mean is None:
        return 0.0
    return (entry.positive_mean + entry.negative_mean) / 2


def probability(entry: LayerDirection, projection: float) -> float:
    """Of the positive pole, by the probe."""
    assert entry.weight is not None
    assert entry.bias is not None
    return 1 / (1 + math.exp(-(entry.weight * projection + entry.bias)))


def passes(threshold: Threshold, score: float, before: bool) -> bool:
    """Whether a condition holds at a score. before: whether it held at the position before, for `until`."""
    above, below, until = threshold.above, threshold.below, threshold.until
    if above is not None:
        return score > above or (until is not None and before and score >= until)
    assert below is not None, "a condition has one bound"
    return score < below or (until is not None and before and score <= until)


def weight(schedule: Schedule, index: int) -> float:
    """Returns the factor of a strength at the index of a generated token."""
    assert schedule.tokens is not None, "a schedule other than `constant` has tokens"
    x = min(index / schedule.tokens, 1.0)
    return {
        "linear": 1 + (schedule.to - 1) * x,
        "cosine": schedule.to + (1 - schedule.to) * (1 + math.cos(math.pi * x)) / 2,
        "exponential": float(abs(schedule.to) ** x),
        "warmup": x,
    }[schedule.kind]


def named(scope: TokenScope, token: int, role: str | None) -> bool:
    """Whether a scope names a token, where it names any."""
    by_id = scope.token_ids is None or token in scope.token_ids
    return by_id and (scope.roles is None or role in scope.roles)


Key = tuple[InterventionSpec, int]


@dataclass
class Controllers:
    """The strengths that `hold` sets, by intervention and layer."""

    strengths: dict[Key, float] = field(default_factory=dict)
    errors: dict[Key, float] = field(default_factory=dict)
    readouts: dict[Key, list[float]] = field(default_factory=dict)

    def step(self, item: InterventionSpec, layer: int, entry: LayerDirection, leaving: torch.Tensor) -> None:
        """After a token: reads what left the layer, and sets the strength of the next one."""
        key, hold = (item, layer), item.hold
        assert hold is not None, "only what holds is stepped"
        readout = (float(leaving @ entry.direction) - middle(entry)) / entry.scale
        error = hold.score - readout
        change = error - self.errors.get(key, error)
        wanted = self.strengths.get(key, 0.0) + hold.proportional_gain * change + hold.integral_gain * error
        self.strengths[key], self.errors[key] = min(max(wanted, -item.strength), item.strength), error
        self.readouts.setdefault(key, []).append(readout)


def factor(source: StrengthFrom, entry: LayerDirection, r: torch.Tensor) -> float:
    """What the score of the second vector makes of a strength. entry: that vector at the layer."""
    wanted = (float(r @ entry.direction) - middle(entry)) / entry.scale + source.bias
    return max(wanted, 0.0) if source.activation == "relu" else wanted


def mapped(entry: LayerDirection, r: torch.Tensor) -> torch.Tensor:
    """What the map of a layer adds to a residual, one pair of directions after the other."""
    assert entry.map is not None
    change = torch.zeros_like(r)
    for read, write, bias in zip(entry.map.read, entry.map.write, entry.map.bias.tolist(), strict=True):
        score = float(read @ r) + bias
        change += (max(score, 0.0) if entry.map.activation == "relu" else score) * write
    return change


def dose_part(item: InterventionSpec, vector: ConceptVector, norms: Sequence[float], layer: int, count: int) -> float:
    """The factor of the strength at one of `count` layers that share the dose of the recommended layers."""

    def dose(at: int) -> float:
        size = vector.layers[at].scale if item.unit == "scale" else 1.0
        return 1.0 if item.unit == "relative" else size / norms[at]

    return sum(dose(at) for at in vector.recommended_layers()) / count / dose(layer)
