"""Pure statistics of a sweep: what moved, what it cost, what a random direction moves too, and which strengths to advise."""

from collections.abc import Mapping, Sequence
from math import exp, sqrt
from statistics import fmean

import numpy as np

from steering.quality import DosePoint
from steering.workflows.comparison.text_metrics import Estimate, estimate
from steering.workflows.evaluation.trials import Trial

COHERENT = 1.5
"""Perplexity under the unsteered model, relative to its own text, up to which a text counts as coherent."""
STUDENT_95 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)
"""One-sided 95 % quantiles of Student's t with 1 to 10 degrees of freedom."""
LONGEST = 700.0
"""Largest exponent that stays a finite number."""


def shifts(trial: Trial, unsteered: Trial) -> tuple[float, ...]:
    """Score of each prompt's answer minus that of the unsteered answer with the same noise."""
    return tuple(one - other for one, other in zip(trial.scores, unsteered.scores, strict=True))


def perplexity_ratio(trial: Trial, unsteered: Trial) -> float:
    """exp of the mean over prompts of (mean surprise - mean surprise of the unsteered answer); 1 where none has tokens."""
    differences = [
        one.surprise - other.surprise
        for one, other in zip(trial.measures, unsteered.measures, strict=True)
        if one.surprise is not None and other.surprise is not None
    ]
    return exp(min(fmean(differences), LONGEST)) if differences else 1.0


def dose_point(
    strength: float, trial: Trial, unsteered: Trial, controls: Sequence[Trial], kl_neutral: float, seed: int
) -> DosePoint:
    """One row of the dose-response. concept_score and random_score are mean shifts; the interval is over prompts."""
    moved = estimate(shifts(trial, unsteered), seed)
    random = [fmean(shifts(control, unsteered)) for control in controls]
    return DosePoint(
        strength=strength,
        concept_score=moved.mean,
        concept_interval=moved.interval or (moved.mean, moved.mean),
        perplexity_ratio=perplexity_ratio(trial, unsteered),
        repetition=fmean(one.repetition for one in trial.measures),
        kl_neutral=kl_neutral,
        relative_dose=fmean(one.dose for one in trial.measures),
        random_score=fmean(random) if random else None,
    )


def random_reach(unsteered: Trial, controls: Sequence[Trial]) -> float:
    """The mean shift that one random direction in twenty exceeds, from the few that were tried.

    A random direction is as likely as its opposite, so its mean shift has mean 0 over directions, and over K of them
    (mean shift of the next) / rms(mean shifts) follows Student's t with K degrees of freedom: t_0.95(K) * rms.
    """
    if not controls:
        return 0.0
    reached = [fmean(shifts(control, unsteered)) for control in controls]
    return STUDENT_95[min(len(reached), len(STUDENT_95)) - 1] * sqrt(fmean(shift**2 for shift in reached))


def advantage(strength: float, trial: Trial, unsteered: Trial, controls: Sequence[Trial], seed: int) -> Estimate:
    """sign(s) * shift, less `random_reach` at the same dose, with its interval over prompts: how far the concept moved
    beyond what a direction without meaning may do. Without controls it is the shift itself."""
    reach, sign = random_reach(unsteered, controls), 1.0 if strength > 0.0 else -1.0
    return estimate([sign * shift - reach for shift in shifts(trial, unsteered)], seed)


def anti_steered(moved: Mapping[float, Sequence[float]]) -> float | None:
    """Share of prompts whose score falls as the strength grows: those with a least-squares slope below 0.

    moved: strength -> shift of every prompt, 0 included. None below two strengths (Tan et al., arXiv 2407.12404, found
    almost half on some sets).
    """
    if len(moved) < 2:
        return None
    strengths = np.array(list(moved))
    table = np.array([moved[strength] for strength in moved])
    centred = strengths - strengths.mean()
    slopes = centred @ table / (centred @ centred)
    return float((slopes < -1e-12).mean())


def advised_range(
    points: Sequence[DosePoint], advantages: Mapping[float, Estimate], sign: int
) -> tuple[float, float] | None:
    """The widest run of measured strengths of one sign that all beat the random control and stay coherent: (low, high).

    Beats: the whole 95 % interval of the advantage is above 0. None where no strength does both.
    """
    runs: list[list[float]] = [[]]
    for point in sorted(points, key=lambda point: point.strength):
        if point.strength * sign <= 0.0:
            continue
        interval = advantages[point.strength].interval
        sound = interval is not None and interval[0] > 0.0 and point.perplexity_ratio <= COHERENT
        if sound:
            runs[-1].append(point.strength)
        else:
            runs.append([])
    found = [(run[0], run[-1]) for run in runs if run]
    return max(found, key=lambda run: run[1] - run[0], default=None)
