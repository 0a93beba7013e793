"""Measures texts and samples: variety, repetition, differences, intervals of means, and the likelihood of tokens."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import exp, isnan, nan, sqrt, tanh

import numpy as np
import torch
from scipy.special import ndtri, stdtrit

from steering.cards import Estimate
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine
from steering.plan.types import SteeringPlan
from steering.schemas.comparison import DiffSpanAnswer
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread

LOGITS_BOUND = 256 * 1024 * 1024
"""Logits held for one answer, in numbers: 1 GiB. A longer one is not measured, and the result says so."""
ROWS = 32
CERTAIN = 1.0 - 1e-12
"""A larger rank correlation is taken for this, so that Fisher's z is finite."""


def distinct(items: Sequence[Hashable], size: int) -> float:
    """Returns the share of distinct runs of `size` items (Li et al., arXiv 1510.03055); 1 without such a run."""
    runs = [tuple(items[i : i + size]) for i in range(len(items) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(tokens: Sequence[int]) -> float:
    """Returns the share of four-token runs that occurred before in the same text (Welleck et al., arXiv 1908.04319)."""
    return 1.0 - distinct(tokens, 4)


def first_divergence(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Returns the index of the first differing token (the shorter length for a prefix), None if equal."""
    shared = shared_prefix(one, other)
    return None if shared == len(one) == len(other) else shared


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many tokens two sequences have in common at their beginning."""
    differing = (index for index, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differing, min(len(one), len(other)))


def word_diff(baseline: str, other: str) -> list[DiffSpanAnswer]:
    """Splits two texts into runs of words, in order: equal in both, or the baseline's words and those that replace
    them. Spaces before a word belong to it and do not count as a difference."""
    left, right = re.findall(r"\s*\S+", baseline), re.findall(r"\s*\S+", other)
    # SequenceMatcher ignores very frequent words in long texts, which bounds its cost for a text of one repeated word.
    matcher = SequenceMatcher(None, [word.strip() for word in left], [word.strip() for word in right])
    return [
        DiffSpanAnswer(kind=kind, baseline="".join(left[a:b]), other="".join(right[c:d]))
        for kind, a, b, c, d in matcher.get_opcodes()
    ]


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of values and its 95 % interval by Student's t, which covers 94 to 95 % for 8 to 24 values."""
    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Estimate(mean, None)
    reach = float(stdtrit(len(numbers) - 1, 0.975) * numbers.std(ddof=1) / np.sqrt(len(numbers)))
    return Estimate(mean, (mean - reach, mean + reach))


def share(count: float, of: int) -> Estimate:
    """Returns count / of and its 95 % interval (Wilson, Journal of the American Statistical Association 22, 1927), which has a width
    where all or none count. count: may be a sum of shares, which scipy's `binomtest` does not take; the interval is then too wide rather
    than too narrow."""
    found, square = count / of, float(ndtri(0.975)) ** 2 / of
    middle = (found + square / 2) / (1.0 + square)
    reach = sqrt(square * found * (1.0 - found) + square**2 / 4) / (1.0 + square)
    return Estimate(found, (max(middle - reach, 0.0), min(middle + reach, 1.0)))


def difference_of_shares(differences: Sequence[float]) -> Estimate:
    """Returns the mean of paired differences of shares, each from -1 to 1, and its 95 % interval (Agresti and Min, Statistics in
    Medicine 24, 2005): half an observation more in each of the four cells of the pairs, so that it has a width where none differ."""
    numbers, count = np.asarray(differences, dtype=np.float64), len(differences) + 2
    middle = float(numbers.sum()) / count
    spread = (float(np.square(numbers).sum()) + 1.0) / count - middle**2
    reach = float(ndtri(0.975)) * sqrt(spread / count)
    return Estimate(float(numbers.mean()), (max(middle - reach, -1.0), min(middle + reach, 1.0)))


def ratio(values: Sequence[float], reference: Sequence[float]) -> Estimate:
    """Returns the ratio of the means of paired values and its 95 % interval (Fieller, Journal of the Royal Statistical
    Society B 16, 1954), None where the mean of `reference` is not shown to differ from 0. Raises ZeroDivisionError."""
    pairs = np.array([values, reference], dtype=np.float64)
    mean, base = pairs.mean(axis=1).tolist()
    if pairs.shape[1] < 2:
        return Estimate(mean / base, None)
    count = pairs.shape[1]
    reach = float(stdtrit(count - 1, 0.975)) ** 2 / count * np.cov(pairs)
    square = base**2 - reach[1, 1]
    if square <= 0.0:
        return Estimate(mean / base, None)
    middle = mean * base - reach[0, 1]
    half = sqrt(max(middle**2 - square * (mean**2 - reach[0, 0]), 0.0))
    return Estimate(mean / base, (float((middle - half) / square), float((middle + half) / square)))


def rank_correlation(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Estimate | None:
    """Returns Spearman's rank correlation of two scores of the same texts and its 95 % interval; None where it is not defined,
    as for equal scores. one, other: for each prompt the scores of its texts, which are alike, so the interval is that of a
    jackknife over prompts (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982) of Fisher's z."""
    from scipy.stats import spearmanr  # noqa: PLC0415 - takes half a second to import

    def found(left_out: int | None) -> float:
        rows = [[x for i, each in enumerate(scores) if i != left_out for x in each] for scores in (one, other)]
        if any(len(set(row)) < 2 for row in rows):
            return nan
        return float(np.arctanh(np.clip(spearmanr(*rows).statistic, -CERTAIN, CERTAIN)))

    whole, count = found(None), len(one)
    if isnan(whole):
        return None
    parts = np.array([found(index) for index in range(count)])
    if count < 2 or np.isnan(parts).any():
        return Estimate(tanh(whole), None)
    spread = sqrt((count - 1) / count * float(np.square(parts - parts.mean()).sum()))
    reach = float(stdtrit(count - 1, 0.975)) * spread
    return Estimate(tanh(whole), (tanh(whole - reach), tanh(whole + reach)))


def finite_exp(exponent: float) -> float:
    """Returns exp of an exponent, of 700 for a larger one: beyond it the exponential is not a finite number."""
    return exp(min(exponent, 700.0))


@dataclass(frozen=True, slots=True)
class TokenMeasures:
    """Per generated token, in nats: surprise = -log p of the unsteered model; divergence = KL(plan || unsteered)."""

    surprise: tuple[float, ...]
    divergence: tuple[float, ...]


async def measure_tokens(
    engine: Engine, prompt: tuple[int, ...], tokens: tuple[int, ...], plan: SteeringPlan
) -> TokenMeasures | None:
    """Measures `tokens` after `prompt` by unfiltered logits at temperature 1; None where these are too many to hold."""
    if (len(tokens) + 1) * engine.info.vocab_size > LOGITS_BOUND:
        return None
    if not tokens:
        return TokenMeasures((), ())
    plans = (plan.unsteered,) if plan.empty else (plan.unsteered, plan)
    captures = await engine.capture(
        [CapturePrompt(prompt + tokens, one, len(prompt), first=len(prompt) - 1) for one in plans],
        CaptureSpec(layers=(), logits=True),
        priority=0,
    )
    plain, steered = predicting(captures[0], len(tokens)), predicting(captures[-1], len(tokens))
    surprise = await run_in_thread(surprises, plain, tokens)
    divergence = (0.0,) * len(tokens) if plan.empty else await run_in_thread(divergences, steered, plain)
    return TokenMeasures(surprise, divergence)


def predicting(capture: Capture, count: int) -> Float[Tensor, "token vocab"]:
    """Returns the logits that predict `count` tokens, of a capture from the prompt's last position on."""
    assert capture.logits is not None, "asked for with CaptureSpec.logits"
    return capture.logits[:count]


def surprises(logits: Float[Tensor, "token vocab"], tokens: Sequence[int]) -> tuple[float, ...]:
    """Returns -log softmax(logits)[token] for each row, in nats."""
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return tuple((logits.double().logsumexp(dim=1) - chosen.double()).tolist())


def divergences(logits: Float[Tensor, "token vocab"], reference: Float[Tensor, "token vocab"]) -> tuple[float, ...]:
    """Returns KL(softmax(logits) || softmax(reference)) for each row, in nats, float64."""
    values: list[float] = []
    for start in range(0, len(logits), ROWS):
        log_p, log_q = (rows[start : start + ROWS].double().log_softmax(dim=1) for rows in (logits, reference))
        values += (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp(min=0.0).tolist()
    return tuple(values)
