"""Condition: a score of each residual vector, compared with a threshold elsewhere. Pure maths, rows independent."""

from typing import ClassVar, Protocol

from steering.shapes import Parameters, Residual, Scores


class Condition(Protocol):
    """How a live residual is scored on a vector.

    name: its word in the API (`score`). parameters: names of its `n` parameters, taken from the vector's layer.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual (token, d_model) float32, direction (token, d_model) unit, parameters (token, n) -> (token,)."""
        ...
