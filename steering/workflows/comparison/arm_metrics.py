"""Measures the arms of a comparison: each arm's own text, and its difference from the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from steering.engine.api import Engine, Prompt
from steering.engine.prompts import encode_steered
from steering.plan.types import SteeringPlan
from steering.quality import Estimate
from steering.threads import run_in_thread
from steering.workflows.comparison.teacher_forcing import TokenMeasures, measure_tokens
from steering.workflows.comparison.text_metrics import (
    DiffSpan,
    distinct,
    estimate,
    finite_exp,
    first_divergence,
    means,
    repetition,
    word_diff,
)
from steering.workflows.generate import Answer


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer, and the mean score of its text by vector as the unsteered model reads it (empty for an empty text)."""

    answer: Answer
    readout: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ArmMetrics:
    """Means over all choices of an arm.

    perplexity: of its tokens under the unsteered model on the arm's own prompt; None without tokens, or where the logits
    would not fit in memory. readout: score per vector of the finished texts, read again by the unsteered model.
    steered_readout: measured in the steered stream while the text was generated, so it contains what steering added.
    """

    perplexity: float | None
    distinct_2: float
    repetition: float
    readout: Mapping[str, float]
    steered_readout: Mapping[str, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgainstBaseline:
    """kl_*: KL(arm || unsteered model) in nats along the arm's own tokens, on its own prompt, so an arm that differs only by
    its prompt has 0. The rest is choice by choice against the baseline's choice of the same seed, and empty where the
    baseline failed. readout_shift: of `readout`. first_divergence: None where two choices are equal."""

    kl_mean: float | None
    kl_per_token: tuple[tuple[float, ...], ...]
    first_divergence: tuple[int | None, ...]
    readout_shift: Mapping[str, Estimate]
    diff: tuple[tuple[DiffSpan, ...], ...]


async def measure_arm(
    engine: Engine,
    prompt: Prompt,
    plan: SteeringPlan,
    choices: Sequence[ReadAnswer],
    baseline: Sequence[ReadAnswer] | None,
) -> tuple[ArmMetrics, AgainstBaseline | None]:
    """Measures one answer at a time, so that the logits of one answer are held at a time. baseline None: the arm is it."""
    ids, plan = await encode_steered(engine.tokenizer, prompt, plan)
    measured = [await measure_tokens(engine, ids, one.answer.tokens, plan) for one in choices]
    metrics = _metrics(choices, measured)
    if baseline is None:
        return metrics, None
    return metrics, await run_in_thread(_against, choices, baseline, measured)


def _metrics(choices: Sequence[ReadAnswer], measured: Sequence[TokenMeasures | None]) -> ArmMetrics:
    surprise = [value for one in measured if one is not None for value in one.surprise]
    left_out = sum(one is None for one in measured)
    return ArmMetrics(
        perplexity=finite_exp(fmean(surprise)) if surprise else None,
        distinct_2=fmean(distinct(one.answer.tokens, 2) for one in choices),
        repetition=fmean(repetition(one.answer.tokens) for one in choices),
        readout=means([one.readout for one in choices]),
        steered_readout=means([event.readout for one in choices for event in one.answer.events]),
        warnings=(f"perplexity and KL leave out {left_out} answers that were too long to hold",) if left_out else (),
    )


def _against(
    choices: Sequence[ReadAnswer], baseline: Sequence[ReadAnswer], measured: Sequence[TokenMeasures | None]
) -> AgainstBaseline:
    pairs = list(zip(choices, baseline, strict=bool(baseline)))
    divergence = tuple(() if one is None else one.divergence for one in measured)
    values = [value for one in divergence for value in one]
    shifts: dict[str, list[float]] = {}  # by vector, from the baseline's choice with the same noise
    for one, other in pairs:
        for name in one.readout.keys() & other.readout.keys():
            shifts.setdefault(name, []).append(one.readout[name] - other.readout[name])
    return AgainstBaseline(
        kl_mean=fmean(values) if values else None,
        kl_per_token=divergence,
        first_divergence=tuple(first_divergence(one.answer.tokens, other.answer.tokens) for one, other in pairs),
        readout_shift={name: estimate(each) for name, each in shifts.items()},
        diff=tuple(word_diff(other.answer.text, one.answer.text) for one, other in pairs),
    )
