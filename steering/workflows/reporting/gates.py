"""Gates of a deployment report: checks with stated thresholds (after FaithSteer-BENCH: control, utility, robustness)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from steering.quality import Estimate, Interval
from steering.schemas.evaluation.report import ThresholdsFields
from steering.workflows.comparison.text_metrics import estimate
from steering.workflows.evaluation.statistics import perplexity_ratio, shifts
from steering.workflows.evaluation.trials import Trial

GateName = Literal["control", "utility", "robustness"]


@dataclass(frozen=True, slots=True)
class Check:
    """One number against its threshold. interval: 95 % over prompts, where there is one."""

    name: str
    value: float
    relation: Literal["above", "at_most", "at_least"]
    threshold: float
    passed: bool
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """Passes when all of its checks do."""

    name: GateName
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """See the class."""
        return all(check.passed for check in self.checks)


def at_most(name: str, value: float, threshold: float, interval: Interval | None = None) -> Check:
    """Passes where the value is no larger."""
    return Check(name, value, "at_most", threshold, value <= threshold, interval)


def at_least(name: str, value: float, threshold: float, interval: Interval | None = None) -> Check:
    """Passes where the value is no smaller."""
    return Check(name, value, "at_least", threshold, value >= threshold, interval)


def above(name: str, found: Estimate, threshold: float) -> Check:
    """Passes where the whole interval is above."""
    low = found.mean if found.interval is None else found.interval[0]
    return Check(name, found.mean, "above", threshold, low > threshold, found.interval)


def along(trial: Trial, unsteered: Trial, direction: int) -> tuple[float, ...]:
    """The shift of each prompt's answer along the direction (1 or -1) in which the concept is meant to move."""
    return tuple(direction * shift for shift in shifts(trial, unsteered))


def control_gate(moved: Sequence[float], chance: float | None, limits: ThresholdsFields) -> Gate:
    """moved: shift of each prompt along the direction. chance: what one random steering in twenty reaches; None: not known."""
    against = fmean(shift < 0.0 for shift in moved)
    return Gate(
        "control",
        (above("shift", estimate(moved), chance or 0.0), at_most("anti_steered", against, limits.anti_steered)),
    )


def utility_gate(
    trial: Trial, unsteered: Trial, kl_neutral: float, accuracy: tuple[float, float], limits: ThresholdsFields
) -> Gate:
    """The checks of the answers themselves, of neutral prompts and of the questions, which were answered unsteered and steered."""
    dearer = perplexity_ratio(trial, unsteered)
    repeated = fmean(one.repetition for one in trial.measures) - fmean(one.repetition for one in unsteered.measures)
    checks = (
        at_most("perplexity_ratio", dearer.mean, limits.perplexity, dearer.interval),
        at_most("repetition_increase", repeated, limits.repetition),
        at_most("kl_neutral", kl_neutral, limits.kl_neutral),
        at_most("accuracy_loss", accuracy[0] - accuracy[1], limits.accuracy_loss),
    )
    return Gate("utility", checks)


def robustness_gate(plain: float, varied: Sequence[tuple[str, Estimate]], limits: ThresholdsFields) -> Gate:
    """plain: mean shift along the direction on the prompts as they are; varied: the same under each variation.

    Where the plain prompts do not move at all, nothing can be retained and every check fails.
    """
    checks = []
    for name, found in varied:
        share, interval = 0.0, None
        if plain > 0.0:
            share = found.mean / plain
            interval = found.interval and (found.interval[0] / plain, found.interval[1] / plain)
        checks.append(at_least(f"retained.{name}", share, limits.retained, interval))
    return Gate("robustness", tuple(checks))
