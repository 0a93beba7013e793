"""SteeringPlan: a SteeringSpec resolved for one model: names have become tensors, strengths residual units.

A plan is what an engine runs. At each layer it is a LayerProgram: the unconditional adds that open the list, summed
once into one row per phase, then the remaining steps in the order written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from steering.shapes import Float, Tensor
from steering.spec import InterventionSpec, Schedule, SteeringSpec, TokenScope


class Phase(IntEnum):
    """Where a position stands. The last prompt position is a phase of its own: it predicts the first generated token."""

    PROMPT = 0
    LAST = 1
    GENERATED = 2


SCOPE_PHASES: Mapping[str, frozenset[Phase]] = {
    "all": frozenset(Phase),
    "prompt": frozenset({Phase.PROMPT, Phase.LAST}),
    "generated": frozenset({Phase.LAST, Phase.GENERATED}),
    "last": frozenset({Phase.LAST}),
}


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedThreshold:
    """One test. It holds where score > bound (`above`) or score < bound; with `until`, hysteresis.

    direction (d_model,), float32, unit. parameters: those of the condition named by `score`.
    """

    vector: str
    score: str
    layer: int
    direction: Float[Tensor, "d_model"]
    parameters: tuple[float, ...]
    above: bool
    bound: float
    until: float | None
    at: Literal["prompt", "token"]


@dataclass(frozen=True, slots=True)
class ConditionTree:
    """A tree over the plan's thresholds, by index: a leaf has `threshold`, the others have `children`."""

    kind: Literal["threshold", "all", "any", "not"]
    threshold: int = -1
    children: tuple["ConditionTree", ...] = ()

    def leaves(self) -> frozenset[int]:
        """Indices of the thresholds it depends on."""
        if self.kind == "threshold":
            return frozenset({self.threshold})
        return frozenset().union(*(child.leaves() for child in self.children))


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One call of an operation at one layer.

    directions (k, d_model) unit, float32. parameters in residual units; `relative` marks those listed in the
    operation's `scaled` as fractions of |r| at the token. sources: indices of the interventions it carries out.
    """

    operation: str
    directions: Float[Tensor, "k d_model"]
    parameters: tuple[float, ...]
    relative: bool
    scope: TokenScope
    schedule: Schedule
    decision: ConditionTree | None
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpeningAdd:
    """One add inside the opening row, kept for the report: |amount| in residual units, and the phases it acts in."""

    source: int
    amount: float
    phases: frozenset[Phase]


@dataclass(frozen=True, slots=True, eq=False)
class LayerProgram:
    """What happens to a row at one layer: `opening` (phase, d_model) float32 is added first, then `steps` in order."""

    opening: Float[Tensor, "phase d_model"] | None
    opening_adds: tuple[OpeningAdd, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Intervention:
    """One intervention as resolved, for the report: which vector version, where, and the dose that was planned."""

    spec: InterventionSpec
    vector: str
    sha256: str
    layers: tuple[int, ...]
    planned_dose: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class SteeringPlan:
    """Everything one request's steering needs, in the order written.

    spec: as written, with every vector pinned to its version and every layer named, so that it can be resolved again.
    vectors: `name@version` -> SHA-256 of every vector it needs, those of conditions included.
    fingerprint: digest of all of it and of the model. prompt_fingerprint: digest of what acts on prompt positions
    before the last; empty when nothing does. reusable: whether prompt KV may be shared under that fingerprint at
    all.
    """

    spec: SteeringSpec
    interventions: tuple[Intervention, ...]
    layers: Mapping[int, LayerProgram]
    thresholds: tuple[ResolvedThreshold, ...]
    fingerprint: str
    prompt_fingerprint: str = ""
    reusable: bool = True
    warnings: tuple[str, ...] = ()
    vectors: Mapping[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not self.layers


UNSTEERED = SteeringPlan(spec=SteeringSpec(), interventions=(), layers={}, thresholds=(), fingerprint="")
"""The plan of a request that asked for no steering."""
