"""Measures texts and samples: variety, repetition, the first difference of two answers, and intervals of means."""

import re
from collections.abc import Hashable, Mapping, Sequence
from difflib import SequenceMatcher
from math import exp
from statistics import fmean
from typing import TypeVar

import numpy as np
from scipy.stats import t

from steering.quality import Estimate
from steering.schemas.comparison import DiffSpanAnswer

K = TypeVar("K")


def distinct(items: Sequence[Hashable], size: int) -> float:
    """Returns the share of distinct runs of `size` items (Li et al., arXiv 1510.03055); 1 for a text without such a run."""
    runs = [tuple(items[i : i + size]) for i in range(len(items) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(tokens: Sequence[int]) -> float:
    """Returns the share of four-token runs that occurred before in the same text (Welleck et al., arXiv 1908.04319)."""
    return 1.0 - distinct(tokens, 4)


def first_divergence(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Returns the index of the first differing token, the shorter length if one is a prefix of the other, None if equal."""
    shared = shared_prefix(one, other)
    return None if shared == len(one) == len(other) else shared


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many tokens two sequences have in common at their beginning."""
    differing = (index for index, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differing, min(len(one), len(other)))


def word_diff(baseline: str, other: str) -> list[DiffSpanAnswer]:
    """Splits two texts into runs of words, in order: equal in both, or the baseline's words and those that replace them. Spaces
    before a word belong to it and do not count as a difference."""
    left, right = re.findall(r"\s*\S+", baseline), re.findall(r"\s*\S+", other)
    # SequenceMatcher ignores very frequent words in long texts, which bounds its cost for a text of one repeated word.
    matcher = SequenceMatcher(None, [word.strip() for word in left], [word.strip() for word in right])
    return [
        DiffSpanAnswer(kind=kind, baseline="".join(left[a:b]), other="".join(right[c:d]))
        for kind, a, b, c, d in matcher.get_opcodes()
    ]


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of values and its 95 % interval by Student's t.

    A percentile bootstrap over the 8 to 24 prompts of an evaluation covers 88 to 93 %, the t interval 94 to 95 %.
    """
    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Estimate(mean, None)
    reach = float(t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / np.sqrt(len(numbers)))
    return Estimate(mean, (mean - reach, mean + reach))


def means(rows: Sequence[Mapping[K, float]]) -> dict[K, float]:
    """Averages by key, over the rows that have it."""
    if len(rows) == 1:  # most answers; fmean takes a microsecond a layer
        return dict(rows[0])
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: fmean(row[key] for row in rows if key in row) for key in keys}


def finite_exp(exponent: float) -> float:
    """Returns exp of an exponent, of 700 for a larger one: beyond it the exponential is not a finite number."""
    return exp(min(exponent, 700.0))
