"""Measures the arms of a comparison: each arm's own text, and its difference from the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from steering.engine.api import Engine, Prompt
from steering.engine.prompts import encode_steered
from steering.plan.types import SteeringPlan
from steering.schemas.comparison import AgainstBaselineAnswer, EstimateAnswer, MeanAnswer, MetricsAnswer
from steering.threads import run_in_thread
from steering.workflows.comparison.teacher_forcing import TokenMeasures, measure_tokens
from steering.workflows.comparison.text_metrics import (
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


async def measure_arm(
    engine: Engine,
    prompt: Prompt,
    plan: SteeringPlan,
    choices: Sequence[ReadAnswer],
    baseline: Sequence[ReadAnswer] | None,
) -> tuple[MetricsAnswer, AgainstBaselineAnswer | None]:
    """Measures one answer at a time, so that the logits of one answer are held at a time.

    baseline: its choices of the same seeds; none where it failed, which leaves out all but the KL divergence; None: the arm
    is the baseline.
    """
    ids, plan = await encode_steered(engine.tokenizer, prompt, plan)
    measured = [await measure_tokens(engine, ids, one.answer.tokens, plan) for one in choices]
    metrics = _metrics(choices, measured)
    if baseline is None:
        return metrics, None
    return metrics, await run_in_thread(_against, choices, baseline, measured)


def _metrics(choices: Sequence[ReadAnswer], measured: Sequence[TokenMeasures | None]) -> MetricsAnswer:
    """Averages over all choices of an arm. perplexity: None without tokens, or where the logits would not fit in memory."""
    surprise = [value for one in measured if one is not None for value in one.surprise]
    left_out = sum(one is None for one in measured)
    return MetricsAnswer(
        perplexity=finite_exp(fmean(surprise)) if surprise else None,
        distinct_2=fmean(distinct(one.answer.tokens, 2) for one in choices),
        repetition=fmean(repetition(one.answer.tokens) for one in choices),
        readout=_means([one.readout for one in choices]),
        steered_readout=_means([event.readout for one in choices for event in one.answer.events]),
        warnings=[f"perplexity and KL leave out {left_out} answers that were too long to hold"] if left_out else [],
    )


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, MeanAnswer]:
    return {name: MeanAnswer(mean=mean) for name, mean in means(rows).items()}


def _against(
    choices: Sequence[ReadAnswer], baseline: Sequence[ReadAnswer], measured: Sequence[TokenMeasures | None]
) -> AgainstBaselineAnswer:
    """Compares with the unsteered model by KL(arm || unsteered model) on the arm's own prompt, so that an arm that differs only
    by its prompt has 0; and choice by choice with the baseline's choice of the same seed."""
    pairs = list(zip(choices, baseline, strict=bool(baseline)))
    divergence = [[] if one is None else list(one.divergence) for one in measured]
    values = [value for one in divergence for value in one]
    shifts: dict[str, list[float]] = {}  # by vector, from the baseline's choice with the same noise
    for one, other in pairs:
        for name in one.readout.keys() & other.readout.keys():
            shifts.setdefault(name, []).append(one.readout[name] - other.readout[name])
    return AgainstBaselineAnswer(
        kl_mean=fmean(values) if values else None,
        kl_per_token=divergence,
        first_divergence=[first_divergence(one.answer.tokens, other.answer.tokens) for one, other in pairs],
        readout_shift={
            name: EstimateAnswer.model_validate(estimate(each), from_attributes=True) for name, each in shifts.items()
        },
        diff=[word_diff(other.answer.text, one.answer.text) for one, other in pairs],
    )
