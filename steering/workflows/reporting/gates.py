"""Gates of a deployment report: checks with stated thresholds (after FaithSteer-BENCH: control, utility, robustness)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from steering.quality import COHERENT, Estimate, Interval
from steering.workflows.comparison.text_metrics import estimate
from steering.workflows.evaluation.statistics import perplexity_ratio, shifts
from steering.workflows.evaluation.trials import Trial

GateName = Literal["control", "utility", "robustness"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a report demands.

    anti_steered: largest share of prompts that move against the direction. perplexity: largest ratio to unsteered text.
    repetition: largest increase of the share of repeated runs of four tokens. kl_neutral: nats per token. accuracy_loss: of the
    share of questions answered rightly. retained: smallest share of the effect that is left under each variation.
    agreement: smallest rank correlation with the independent scorer.
    """

    anti_steered: float = 0.25
    perplexity: float = COHERENT
    repetition: float = 0.1
    kl_neutral: float = 0.5
    accuracy_loss: float = 0.1
    retained: float = 0.5
    agreement: float = 0.3


DEMANDED = Thresholds()


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


def control_gate(moved: Sequence[float], chance: float | None, limits: Thresholds) -> Gate:
    """moved: shift of each prompt along the direction. chance: what one random steering in twenty reaches; None: not known."""
    against = fmean(shift < 0.0 for shift in moved)
    return Gate(
        "control",
        (above("shift", estimate(moved), chance or 0.0), at_most("anti_steered", against, limits.anti_steered)),
    )


@dataclass(frozen=True, slots=True)
class Utility:
    """What a steering costs besides its answers: KL on neutral prompts, and the questions, unsteered and steered."""

    kl_neutral: float
    accuracy: tuple[float, float]


def utility_gate(trial: Trial, unsteered: Trial, utility: Utility, limits: Thresholds) -> Gate:
    """The checks of the answers themselves, of neutral prompts and of the questions."""
    dearer = perplexity_ratio(trial, unsteered)
    repeated = fmean(one.repetition for one in trial.measures) - fmean(one.repetition for one in unsteered.measures)
    before, after = utility.accuracy
    return Gate(
        "utility",
        (
            at_most("perplexity_ratio", dearer.mean, limits.perplexity, dearer.interval),
            at_most("repetition_increase", repeated, limits.repetition),
            at_most("kl_neutral", utility.kl_neutral, limits.kl_neutral),
            at_most("accuracy_loss", before - after, limits.accuracy_loss),
        ),
    )


def robustness_gate(plain: float, varied: Sequence[tuple[str, Estimate]], limits: Thresholds) -> Gate:
    """plain: mean shift along the direction on the prompts as they are; varied: the same under each variation.

    Where the plain prompts do not move at all, nothing can be retained and every check fails.
    """
    return Gate(
        "robustness",
        tuple(
            at_least(
                f"retained.{name}",
                found.mean / plain if plain > 0.0 else 0.0,
                limits.retained,
                None
                if plain <= 0.0 or found.interval is None
                else (found.interval[0] / plain, found.interval[1] / plain),
            )
            for name, found in varied
        ),
    )
