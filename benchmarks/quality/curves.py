"""A dose-response as numbers a prompt, and how far it reaches before perplexity has grown by a factor."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from steering.lab.trials import Trial, shifts

RESAMPLES = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """strengths (strength,) from 0 outwards, 0 first; shift, surprise (strength, prompt): against unsteered text, the
    second in nats a token. Shifts are taken along the sign of the strengths."""

    strengths: NDArray[np.float64]
    shift: NDArray[np.float64]
    surprise: NDArray[np.float64]


def curve(strengths: Sequence[float], trials: Sequence[Trial], unsteered: Trial) -> Curve:
    """Of strengths of one sign. Trials that broke are left out."""
    sound = sorted(
        ((s, trial) for s, trial in zip(strengths, trials, strict=True) if trial.broken is None),
        key=lambda x: abs(x[0]),
    )
    sign = 1.0 if sound[0][0] > 0.0 else -1.0
    prompts = len(unsteered.scores)
    moved = [np.zeros(prompts), *(sign * np.array(shifts(trial, unsteered)) for _, trial in sound)]
    dearer = [np.zeros(prompts), *(_dearer(trial, unsteered) for _, trial in sound)]
    return Curve(np.array([0.0, *(s for s, _ in sound)]), np.array(moved), np.array(dearer))


def _dearer(trial: Trial, unsteered: Trial) -> NDArray[np.float64]:
    """Surprise against unsteered, by prompt; 0 where an answer had no token."""
    return np.array(
        [
            0.0 if one.surprise is None or other.surprise is None else one.surprise - other.surprise
            for one, other in zip(trial.measures, unsteered.measures, strict=True)
        ]
    )


def crossing(costs: NDArray[np.float64], values: NDArray[np.float64], bound: float) -> float:
    """The value where the cost first reaches the bound, between the points on either side; the last where it never does."""
    over = np.flatnonzero(costs > bound)
    if not len(over):
        return float(values[-1])
    after = int(over[0])
    if after == 0:
        return float(values[0])
    share = (bound - costs[after - 1]) / (costs[after] - costs[after - 1])
    return float(values[after - 1] + share * (values[after] - values[after - 1]))


def reached(found: Curve, ratio: float, prompts: NDArray[np.int64] | None = None) -> float:
    """Mean shift at which the perplexity ratio first reaches `ratio`. prompts: which count, None for all."""
    chosen = np.arange(found.shift.shape[1]) if prompts is None else prompts
    return crossing(found.surprise[:, chosen].mean(1), found.shift[:, chosen].mean(1), log(ratio))


def difference(one: Curve, other: Curve, ratio: float, seed: int = 0) -> tuple[float, float, float]:
    """How much further `one` reaches than `other` at equal perplexity, on the same prompts: (mean, low, high), the interval
    a bootstrap over prompts."""
    numbers, count = np.random.default_rng(seed), one.shift.shape[1]
    rows = numbers.integers(count, size=(RESAMPLES, count))
    apart = [reached(one, ratio, row) - reached(other, ratio, row) for row in rows]
    low, high = np.quantile(apart, [0.025, 0.975])
    return reached(one, ratio) - reached(other, ratio), float(low), float(high)


def reach_interval(found: Curve, ratio: float, seed: int = 0) -> tuple[float, float]:
    """95 %, bootstrap over prompts."""
    count = found.shift.shape[1]
    rows = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile([reached(found, ratio, row) for row in rows], [0.025, 0.975])
    return float(low), float(high)
