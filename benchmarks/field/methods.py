"""Our own methods beside the mean difference, on the same pairs and at equal KL: how far each moves the log odds towards a behaviour."""

from typing import Any, Literal

import numpy as np

from benchmarks.field import data
from benchmarks.field.behaviours import log_odds, pair_of, splits, vector_name
from benchmarks.field.run import Run, Uncalibrated
from steering.client import ApiError
from steering.lab.calibration import FIRST
from steering.workflows.measures import estimate

BASE = "mean_difference"
DIRECTIONS = (BASE, "pca", "probe", "whitened", "rfm")
MAPS = ("affine", "null_space", "conceptor", "clas")
"""Methods whose map is applied. The others add a direction."""


def methods(run: Run, name: str) -> dict[str, Any]:
    """Measures every method on one behaviour: the shift of the log odds from no steering to the strength of 1 nat. A map leads one way, so
    the shift towards the behaviour is measured, not the spread. A method that gives nothing to steer with has the reason as `failed`."""
    fit, validation, test = splits(run, name)
    plain = {"validation": log_odds(run.client, validation, []), "test": log_odds(run.client, test, [])}
    results: dict[str, Any] = {"digest": data.digest([fit, validation, test])}
    shifts: dict[str, list[float]] = {}
    for method in (*DIRECTIONS, *MAPS):
        try:
            results[method], shifts[method] = _measured(run, name, method, plain)
        except (ApiError, Uncalibrated) as error:
            results[method] = {"failed": str(error)}
    for method, shift in shifts.items():
        found, ahead = estimate(shift), [one - base for one, base in zip(shift, shifts.get(BASE, shift), strict=True)]
        beyond = estimate(ahead)
        results[method] |= {
            "shift": found.mean,
            "interval": found.interval,
            "beyond_base": {"mean": beyond.mean, "interval": beyond.interval},
            "items": [{"question": one.text, "shift": value} for one, value in zip(test, shift, strict=True)],
        }
    return results


def _measured(run: Run, name: str, method: str, plain: dict[str, list[float]]) -> tuple[dict[str, Any], list[float]]:
    """Fits one method and chooses its layer on validation. Returns the choice, and the shift of each question of the test split. Raises
    ApiError where the pairs give nothing, Uncalibrated where no layer has a strength of 1 nat."""
    client = run.client
    operation: Literal["add", "apply"] = "apply" if method in MAPS else "add"
    fit, validation, test = splits(run, name)
    vector = f"{vector_name(name)}-{method}".replace("_", "-")
    pairs = [{"positive": positive, "negative": negative} for positive, negative in map(pair_of, fit)]
    made = client.extract_vector(
        vector, pairs=pairs, layers=run.layers, position="response_mean", seed=run.seed, method=method
    )
    layers = [layer for layer in run.layers if operation == "add" or str(layer) in made.maps]
    found = client.calibrate(
        vector,
        layers=layers,
        operation=operation,
        neutral=run.neutral(FIRST),
        max_tokens=run.counts.neutral[1],
        seed=run.seed,
    )
    points = {point.layer: point for point in found.points if point.positive is not None}
    if not points:
        raise Uncalibrated(f"none of the layers {layers} has a strength of 1 nat")

    def shifts(part: Literal["validation", "test"], layer: int) -> list[float]:
        steering = [
            {
                "vector": vector,
                "layers": [layer],
                "operation": operation,
                "strength": points[layer].positive,
                "scope": {"tokens": "all"},
            }
        ]
        questions = validation if part == "validation" else test
        return [up - at for up, at in zip(log_odds(client, questions, steering), plain[part], strict=True)]

    tried = {layer: float(np.mean(shifts("validation", layer))) for layer in points}
    layer = max(tried, key=lambda one: tried[one])
    choice = {"layer": layer, "strength": points[layer].positive, "kl": points[layer].kl_positive, "validation": tried}
    return choice, shifts("test", layer)
