"""Operation: the protocol of what can be done to residual vectors. Pure functions of tensors; rows are independent."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Operation(Protocol):
    """The arithmetic of one kind of intervention, and everything the rest of the library needs to know about it.

    An operation subclasses it and states what differs from the defaults.

    parameters: names of its `n` parameters, in order.
    scaled: the parameters in residual units; with unit `relative` they are multiplied by |r| at each token.
    weighted: the parameter that a schedule multiplies. The value 0 makes the operation the identity.
    fields: fields of InterventionSpec it uses that not every operation has (`low`, `high`, `degrees`, `to`, ...).
    required: those of `fields` without which it is refused.
    static: r' - r does not depend on r, so unconditional uses may be summed once per request (static adds).
    """

    parameters: ClassVar[tuple[str, ...]]
    weighted: ClassVar[str]
    scaled: ClassVar[frozenset[str]] = frozenset()
    fields: ClassVar[frozenset[str]] = frozenset()
    required: ClassVar[frozenset[str]] = frozenset()
    static: ClassVar[bool] = False

    @staticmethod
    def resolve(spec: InterventionSpec, entry: LayerDirection, target: LayerDirection | None) -> tuple[float, ...]:
        """The parameters at one layer, in order. entry: the vector there; target: that of `to`, if given.

        Raises InvalidRequest for fields that are missing or out of range.
        """

    @staticmethod
    def planned_dose(parameters: tuple[float, ...], norm: float | None) -> float | None:
        """|r' - r| / |r| as far as it is known before r; None where it depends on r.

        norm: the typical |r| of the layer in the units of the parameters (1 in unit `relative`), None if not measured.
        """
        return None

    @staticmethod
    def merges(parameters: tuple[float, ...]) -> bool:
        """Whether neighbours with these parameters become one call over an orthonormal basis of their joint span."""
        return False

    @staticmethod
    def warnings(spec: InterventionSpec, entries: Mapping[int, LayerDirection]) -> tuple[str, ...]:
        """What a caller should know of an intervention that is carried out all the same. entries: the vector by layer."""
        return ()

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model) float32, directions (token, k, d_model) unit, parameters (token, n) -> (token, d_model).

        Returns a new tensor.
        """


def unit_size(spec: InterventionSpec, entry: LayerDirection) -> float:
    """Returns the residual units in one unit of the spec: kappa for `scale`, 1 for `raw` and `relative`."""
    return entry.scale if spec.unit == "scale" else 1.0
