"""Computes the statistics of an evaluation: shifts and costs with intervals, the reach of chance, and the range that holds."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean

import numpy as np
from scipy.stats import t

from steering.quality import COHERENT, DosePoint, Estimate, Interval, Recommended
from steering.workflows.comparison.text_metrics import estimate, finite_exp
from steering.workflows.evaluation.trials import Trial


def shifts(trial: Trial, unsteered: Trial) -> tuple[float, ...]:
    """Returns the score of each prompt's answer minus that of the unsteered answer with the same noise."""
    return tuple(one - other for one, other in zip(trial.scores, unsteered.scores, strict=True))


def perplexity_ratio(trial: Trial, unsteered: Trial) -> Estimate:
    """Estimates exp of the mean over prompts of (mean surprise - mean surprise of the unsteered answer), with its interval;
    1 where no answer has tokens."""
    differences = [
        one.surprise - other.surprise
        for one, other in zip(trial.measures, unsteered.measures, strict=True)
        if one.surprise is not None and other.surprise is not None
    ]
    if not differences:
        return Estimate(1.0, None)
    found = estimate(differences)
    interval = found.interval and (finite_exp(found.interval[0]), finite_exp(found.interval[1]))
    return Estimate(finite_exp(found.mean), interval)


def mean_shifts(unsteered: Trial, controls: Sequence[Trial]) -> tuple[float, ...]:
    """Returns the mean over the prompts of the shift under each control that is not broken."""
    return tuple(fmean(shifts(control, unsteered)) for control in controls if control.broken is None)


def chance(moved: Sequence[float]) -> float | None:
    """Returns the mean shift that one random direction in twenty exceeds, estimated from `moved`, those of the K that were tried.

    A random direction is as likely as its opposite, so its mean shift has mean 0 over directions, and (mean shift of the
    next) / rms(mean shifts) follows Student's t with K degrees of freedom: the bound is t_0.95(K) * rms, which includes the
    uncertainty of few directions. None without controls.
    """
    if not moved:
        return None
    return float(t.ppf(0.95, len(moved))) * sqrt(fmean(shift**2 for shift in moved))


def advantage(strength: float, trial: Trial, unsteered: Trial, controls: Sequence[Trial]) -> Estimate:
    """Estimates sign(s) * shift, less `chance` at the same dose, with its interval over prompts; without controls the shift."""
    reach, sign = chance(mean_shifts(unsteered, controls)) or 0.0, 1.0 if strength > 0.0 else -1.0
    return estimate([sign * shift - reach for shift in shifts(trial, unsteered)])


def holds(advantage: Interval | None, perplexity: Interval | None) -> bool:
    """Whether the concept moves beyond chance and the text stays coherent, each with the whole of its 95 % interval."""
    return advantage is not None and perplexity is not None and advantage[0] > 0.0 and perplexity[1] <= COHERENT


def dose_point(
    strength: float, trial: Trial, unsteered: Trial, controls: Sequence[Trial], kl_neutral: float
) -> DosePoint:
    """Builds one row of the dose-response. concept_score and random_score are mean shifts; intervals are over prompts."""
    moved, perplexity = estimate(shifts(trial, unsteered)), perplexity_ratio(trial, unsteered)
    random = mean_shifts(unsteered, controls)
    return DosePoint(
        strength=strength,
        concept_score=moved.mean,
        concept_interval=moved.interval or (moved.mean, moved.mean),
        perplexity_ratio=perplexity.mean,
        repetition=fmean(one.repetition for one in trial.measures),
        kl_neutral=kl_neutral,
        relative_dose=fmean(one.dose for one in trial.measures),
        random_score=fmean(random) if random else None,
        perplexity_interval=perplexity.interval,
        chance=chance(random),
    )


def anti_steered(moved: Mapping[float, Sequence[float]]) -> float | None:
    """Returns the share of prompts whose score falls as the strength grows: a least-squares slope below 0.

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


def measured_ranges(layers: tuple[int, ...], sound: Mapping[float, bool]) -> Recommended:
    """Recommends the strengths of either sign that hold at the layers. sound: see `range_that_holds`."""
    return Recommended(layers, range_that_holds(sound, 1), range_that_holds(sound, -1), basis="measured")


def range_that_holds(sound: Mapping[float, bool], sign: int) -> Interval | None:
    """Returns (low, high) of the widest run of measured strengths of one sign that all hold; None where no strength does.

    sound: strength -> whether it holds. Of runs of equal width the one nearest to 0 is taken.
    """
    runs: list[list[float]] = [[]]
    for strength in sorted((one for one in sound if one * sign > 0.0), key=abs):
        if sound[strength]:
            runs[-1].append(strength)
        else:
            runs.append([])
    found = [(min(run), max(run)) for run in runs if run]
    return max(found, key=lambda run: run[1] - run[0], default=None)
