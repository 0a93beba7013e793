"""Operation: the protocol of what a caller can do to residual vectors. Every operation is resolved to edits of one form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from steering.errors import InvalidRequest
from steering.shapes import Direction
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One edit of a residual r: r' = r + c u, c = w phi(v . r + b + q |r|).

    write: u, (d_model,) float32. read: v, (d_model,); None: v is 0, so that c does not depend on the direction of r.
    bias: b, in residual units. relative: q, as a share of |r|.
    weight: w before scope, schedule and condition multiply it; 0 makes the edit the identity.
    kind: phi is the identity (`linear`) or max(0, x) (`relu`). Two have another form: `rotate` turns r toward u, a unit
    vector, by the angle w, and keeps its norm; `head` removes the share w of the attention head whose number u marks with a 1.
    """

    write: Direction
    read: Direction | None = None
    bias: float = 0.0
    relative: float = 0.0
    weight: float = 1.0
    kind: Literal["linear", "relu", "rotate", "head"] = "linear"

    @property
    def acts(self) -> bool:
        """Whether it changes anything at some residual."""
        constant = self.read is None and self.kind in ("linear", "relu")
        return self.weight != 0.0 and not (constant and self.bias == self.relative == 0.0)


class Operation(Protocol):
    """How one kind of intervention becomes edits, and what the rest of the library needs to know about it.

    An operation subclasses it and states what differs from the defaults.

    fields: fields of InterventionSpec it uses that not every operation has (`low`, `high`, `degrees`, `to`, ...).
    required: those of `fields` without which it is refused.
    has_unit: whether `unit` changes what it does.
    """

    fields: ClassVar[frozenset[str]] = frozenset()
    required: ClassVar[frozenset[str]] = frozenset()
    has_unit: ClassVar[bool] = False

    @staticmethod
    def edits(spec: InterventionSpec, entry: LayerDirection, other: LayerDirection | None) -> tuple[Edit, ...]:
        """Returns the edits at one layer. entry: the vector there; other: that of `to` or `strength_from`, if given.

        Raises InvalidRequest for fields that are missing or out of range.
        """

    @staticmethod
    def sign(spec: InterventionSpec) -> int | None:
        """Returns 1 where it moves the projection on its vector up, -1 where down; None where the fields do not tell."""
        return None

    @staticmethod
    def warnings(
        spec: InterventionSpec, entries: Mapping[int, LayerDirection], others: Mapping[int, LayerDirection]
    ) -> tuple[str, ...]:
        """Returns what a caller should know. entries: the vector by layer. others: that of `to` or `strength_from`."""
        return ()


def unit_size(spec: InterventionSpec, entry: LayerDirection) -> float:
    """Returns the residual units in one unit of the spec: kappa for `scale`, 1 for `raw` and `relative`, for `kl` those of the
    strength of 1 nat in the direction of the sign of `strength`. Raises InvalidRequest for `kl` without a calibration."""
    if spec.unit != "kl":
        return entry.scale if spec.unit == "scale" else 1.0
    calibrated = entry.kl_positive if spec.strength >= 0.0 else entry.kl_negative
    if calibrated is None:
        raise InvalidRequest(
            f"unit 'kl' needs a calibration, which vector {spec.vector!r} does not have at every layer asked for in this "
            "direction; POST /v1/evaluations with kind 'calibration' makes it",
            param="unit",
        )
    return calibrated * entry.scale
