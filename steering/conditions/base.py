"""Condition: the protocol of scores of a live residual. The plan compares a score with a bound; rows are independent."""

from typing import ClassVar, Protocol

from steering.shapes import Parameters, Residual, Scores


class Condition(Protocol):
    """Scores a live residual on a vector.

    name: its name in the API (`score`). parameters: names of its `n` parameters. Each is a field of LayerDirection that
    the vector must have at the condition's layer; the request is refused where one is None, and the error names it.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual (token, d_model) float32, direction (token, d_model) unit, parameters (token, n) -> (token,)."""
        ...
