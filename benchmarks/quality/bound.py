"""Finds the relative dose at which text breaks: the default bound of the dose guard is chosen by it."""

from collections.abc import Mapping
from math import log
from statistics import median
from typing import Any

import numpy as np

from benchmarks.quality.curves import crossing

BROKEN = 1.5
"""Perplexity ratio beyond which a text counts as broken, as in an evaluation."""


def breaking_doses(dose: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the relative dose at which the perplexity ratio first reaches BROKEN, by "concept sign"; None if it never does.

    dose: result of `measured` by concept.
    """
    found: dict[str, float | None] = {}
    for concept, entry in dose.items():
        for sign, name in ((1.0, "+"), (-1.0, "-")):
            points = sorted(
                (point for point in entry["points"] if point["strength"] * sign > 0.0),
                key=lambda one: abs(one["strength"]),
            )
            costs = np.log([1.0, *(point["perplexity_ratio"] for point in points)])
            doses = np.array([0.0, *(point["relative_dose"] for point in points)])
            found[f"{concept} {name}"] = crossing(costs, doses, log(BROKEN)) if costs.max() > log(BROKEN) else None
    return found


def typical_breaking_dose(found: Mapping[str, float | None]) -> float | None:
    """Returns the median of the breaking doses, or None if fewer than half of the curves reach BROKEN."""
    middle = median(float("inf") if one is None else one for one in found.values())
    return middle if middle < float("inf") else None
