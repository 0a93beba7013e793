"""Lists the scorers in SCORERS: how much of a concept an answer has, judged from how the unsteered model reads its text."""

from typing import ClassVar, Protocol

import torch

from steering.errors import InvalidRequest
from steering.registry import Registry
from steering.shapes import Residual
from steering.vectors import LayerDirection


class Scorer(Protocol):
    """Scores an answer. unit: what a score of 1 means."""

    name: ClassVar[str]
    unit: ClassVar[str]

    @staticmethod
    def score(activations: Residual, entry: LayerDirection) -> float:
        """activations (token, d_model): the unsteered model's, at the answer's tokens, at the layer of `entry`."""
        ...


class ProjectionScorer:
    """Averages (r . d - m) / kappa over the tokens: the poles lie at +0.5 and -0.5."""

    name: ClassVar[str] = "projection"
    unit: ClassVar[str] = "natural scales"

    @staticmethod
    def score(activations: Residual, entry: LayerDirection) -> float:
        """In natural scales, centred on the poles."""
        return (float((activations @ entry.direction).mean()) - entry.middle) / entry.scale


class ProbeScorer:
    """Averages sigmoid(weight * (r . d) + bias) over the tokens: the share of the answer a probe takes for the concept."""

    name: ClassVar[str] = "probe"
    unit: ClassVar[str] = "probability"

    @staticmethod
    def score(activations: Residual, entry: LayerDirection) -> float:
        """Between 0 and 1. Raises InvalidRequest where the direction has no probe."""
        if entry.weight is None or entry.bias is None:
            raise InvalidRequest(
                "scorer 'probe' needs a direction with a calibrated probe, as method 'probe' makes", param="scorer"
            )
        return float(torch.sigmoid(entry.weight * (activations @ entry.direction) + entry.bias).mean())


SCORERS: Registry[type[Scorer]] = Registry("scorer", {"projection": ProjectionScorer, "probe": ProbeScorer})
