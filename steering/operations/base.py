"""Operation: residual vectors in, steered residual vectors out. Pure maths, no state, a row never sees another row."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from steering.shapes import Directions, Parameters, Residual


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asked of one operation at one layer, before it becomes parameters.

    unit_size: residual units in one of the caller's units (kappa for `scale`, 1 for `raw` and `relative`; for
    `relative` the parameters listed in `Operation.scaled` are multiplied by |r| when the token is met).
    ratio: kappa of the target over kappa of the source for `replace` in unit `scale`, else 1.
    """

    strength: float
    unit_size: float
    low: float | None = None
    high: float | None = None
    degrees: float | None = None
    ratio: float = 1.0


class Operation(Protocol):
    """The arithmetic of one kind of intervention.

    name: its word in the API. parameters: names of its `n` parameters, in order. scaled: those in residual units.
    weighted: the parameter that a schedule multiplies; 0 there is the identity. fields: fields of the spec it uses
    beyond strength and unit. directions: how many directions it takes (1, or 2 with `to`); merges: whether
    neighbours of the same parameters become one call over an orthonormal basis of their directions.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    scaled: ClassVar[frozenset[str]]
    weighted: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    required: ClassVar[frozenset[str]]
    merges: ClassVar[bool]

    @staticmethod
    def resolve(wish: Wish) -> tuple[float, ...]:
        """The parameters in their order. Raises InvalidRequest when the wish is not complete or out of range."""
        ...

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model) float32, directions (token, k, d_model) unit, parameters (token, n) -> (token, d_model).

        A direction row of zeros is unused. Returns a new tensor.
        """
        ...
