"""Pure numbers about texts and samples: variety, repetition, where two answers part, and how sure a mean is."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval; None where a single value cannot have one."""

    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class DiffSpan:
    """A run of words: the same in both texts, or what the baseline has where the other has something else."""

    kind: Literal["equal", "replace", "delete", "insert"]
    baseline: str
    other: str


def distinct(items: Sequence[Hashable], size: int) -> float:
    """Share of runs of `size` items that are different (Li et al., arXiv 1510.03055); 1 for a text without such a run."""
    runs = [tuple(items[i : i + size]) for i in range(len(items) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(tokens: Sequence[int]) -> float:
    """Share of runs of four tokens that came before in the same text (Welleck et al., arXiv 1908.04319)."""
    return 1.0 - distinct(tokens, 4)


def first_divergence(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, the length of the shorter if the longer goes on, None if equal."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def word_diff(baseline: str, other: str) -> tuple[DiffSpan, ...]:
    """The two texts as runs of words, in order. Spaces before a word belong to it and do not count as a difference."""
    left, right = re.findall(r"\s*\S+", baseline), re.findall(r"\s*\S+", other)
    # The matcher sets very frequent words aside in long texts, which keeps a text that broke into one word affordable.
    matcher = SequenceMatcher(None, [word.strip() for word in left], [word.strip() for word in right])
    return tuple(DiffSpan(kind, "".join(left[a:b]), "".join(right[c:d])) for kind, a, b, c, d in matcher.get_opcodes())


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of values, with a percentile bootstrap over them."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return Estimate(float(numbers.mean()), None)
    rows = np.random.default_rng(seed).integers(len(numbers), size=(RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[rows].mean(axis=1), [0.025, 0.975])
    return Estimate(float(numbers.mean()), (float(low), float(high)))
