"""What an arm of a comparison is measured by: its own text, and what differs from the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

from steering.engine.api import Engine, Prompt
from steering.plan.types import SteeringPlan
from steering.threads import run_in_thread
from steering.workflows.comparison.teacher_forcing import TokenMeasures, measurable, measure_tokens
from steering.workflows.comparison.text_metrics import (
    DiffSpan,
    Estimate,
    distinct,
    estimate,
    first_divergence,
    repetition,
    word_diff,
)
from steering.workflows.generate import Answer


@dataclass(frozen=True, slots=True)
class ArmMetrics:
    """Over all choices of an arm. perplexity: of its tokens under the unsteered model on the arm's own prompt; None
    where there was no token, or too much to hold. readout: mean score per vector in natural scales, over all tokens."""

    perplexity: float | None
    distinct_2: float
    repetition: float
    readout: Mapping[str, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgainstBaseline:
    """kl_*: KL(arm || unsteered model) in nats along the arm's own tokens, on its own prompt, so an arm that differs by
    its prompt alone has 0. The rest is choice by choice against the baseline's choice of the same seed, and empty
    where the baseline failed. first_divergence: None where two choices are the same."""

    kl_mean: float | None
    kl_per_token: tuple[tuple[float, ...], ...]
    first_divergence: tuple[int | None, ...]
    readout_shift: Mapping[str, Estimate]
    diff: tuple[tuple[DiffSpan, ...], ...]


async def measure_arm(
    engine: Engine,
    prompt: Prompt,
    plan: SteeringPlan,
    answers: Sequence[Answer],
    baseline: Sequence[Answer] | None,
    seed: int,
) -> tuple[ArmMetrics, AgainstBaseline | None]:
    """One answer at a time, so that the logits of one sequence are held at a time. baseline None: the arm is it."""
    ids = engine.tokenizer.encode(prompt)
    measured = [
        await measure_tokens(engine, ids, answer.tokens, plan)
        if measurable(engine, len(ids) + len(answer.tokens))
        else None
        for answer in answers
    ]
    metrics = _metrics(answers, measured)
    if baseline is None:
        return metrics, None
    return metrics, await run_in_thread(_against, answers, baseline, measured, seed)


def _metrics(answers: Sequence[Answer], measured: Sequence[TokenMeasures | None]) -> ArmMetrics:
    surprise = [value for one in measured if one is not None for value in one.surprise]
    left_out = sum(one is None for one in measured)
    return ArmMetrics(
        perplexity=exp(min(_mean(surprise), 700.0)) if surprise else None,
        distinct_2=_mean([distinct(answer.tokens, 2) for answer in answers]),
        repetition=_mean([repetition(answer.tokens) for answer in answers]),
        readout={name: _mean(scores) for name, scores in _readouts(answers).items()},
        warnings=(f"perplexity and KL leave out {left_out} answers that were too long to hold",) if left_out else (),
    )


def _against(
    answers: Sequence[Answer], baseline: Sequence[Answer], measured: Sequence[TokenMeasures | None], seed: int
) -> AgainstBaseline:
    couples = list(zip(answers, baseline, strict=bool(baseline)))
    divergence = tuple(() if one is None else one.divergence for one in measured)
    together = [value for one in divergence for value in one]
    return AgainstBaseline(
        kl_mean=_mean(together) if together else None,
        kl_per_token=divergence,
        first_divergence=tuple(first_divergence(one.tokens, other.tokens) for one, other in couples),
        readout_shift={name: estimate(shifts, seed % 2**32) for name, shifts in _shifts(couples).items()},
        diff=tuple(word_diff(other.text, one.text) for one, other in couples),
    )


def _readouts(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Scores of all tokens by vector name."""
    scores: dict[str, list[float]] = {}
    for answer in answers:
        for event in answer.events:
            for name, score in event.readout.items():
                scores.setdefault(name, []).append(score)
    return scores


def _shifts(couples: Sequence[tuple[Answer, Answer]]) -> dict[str, list[float]]:
    """Mean readout of a choice minus that of the baseline's choice with the same noise, by vector name."""
    shifts: dict[str, list[float]] = {}
    for one, other in couples:
        mine, theirs = _readouts([one]), _readouts([other])
        for name in mine.keys() & theirs.keys():
            shifts.setdefault(name, []).append(_mean(mine[name]) - _mean(theirs[name]))
    return shifts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
