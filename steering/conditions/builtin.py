"""Condition: the protocol of scores of a live residual, and the conditions that come with the package."""

from typing import ClassVar, Protocol

import torch

from steering.rowwise import dot
from steering.shapes import Parameters, Residual, Scores


class Condition(Protocol):
    """Scores a live residual on a vector. The plan compares the score with a bound; rows are independent.

    parameters: names of its `n` parameters. Each is a field of LayerDirection that the vector must have at the condition's
    layer; the request is refused where one is None, and the error names it.
    """

    parameters: ClassVar[tuple[str, ...]]

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual (token, d_model) float32, direction (token, d_model) unit, parameters (token, n) -> (token,)."""


class Projection(Condition):
    """score = (r . c - m) / kappa (Lee et al., conditional activation steering, arXiv 2409.05907, with a natural scale).

    The component along the vector in natural scales. The poles lie at +0.5 and -0.5; m is 0 for a vector without class means.
    """

    parameters: ClassVar[tuple[str, ...]] = ("scale", "middle")

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual and direction (token, d_model), parameters (token, 2) -> (token,)."""
        return (dot(residual, direction) - parameters[:, 1]) / parameters[:, 0]


class Cosine(Condition):
    """score = (r . c) / |r|, between -1 and 1: the angle between residual and vector, whatever the residual's length."""

    parameters: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual and direction (token, d_model), parameters (token, 0) -> (token,)."""
        norm: Scores = torch.linalg.vector_norm(residual, dim=-1)
        return dot(residual, direction) / norm.clamp_min(1e-12)


class Probe(Condition):
    """score = sigmoid(w (r . c) + b), with the slope and offset the extraction fitted on the projection.

    The calibrated probability of the concept, for vectors whose method fitted a probe.
    """

    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual and direction (token, d_model), parameters (token, 2) -> (token,)."""
        return torch.sigmoid(parameters[:, 0] * dot(residual, direction) + parameters[:, 1])
