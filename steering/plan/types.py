"""SteeringPlan: a SteeringSpec resolved for one model: names have become tensors, strengths residual units.

An Intervention is what an engine runs and what the report reads. A LayerSteering says in which order the interventions
of a plan act at one layer; it refers to them by index and repeats none of their content.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from steering.condition_spec import ConditionKind
from steering.shapes import Float, Tensor
from steering.spec import InterventionSpec, SteeringSpec


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
    at: Literal["prompt", "prompt_mean", "token"]


@dataclass(frozen=True, slots=True)
class ConditionTree:
    """A tree over the plan's thresholds, by index: a leaf has `threshold`, the others have `children`."""

    kind: ConditionKind
    threshold: int = -1
    children: tuple["ConditionTree", ...] = ()

    def leaves(self) -> frozenset[int]:
        """Indices of the thresholds it depends on."""
        if self.kind == "threshold":
            return frozenset({self.threshold})
        return frozenset().union(*(child.leaves() for child in self.children))


@dataclass(frozen=True, slots=True)
class ResolvedHold:
    """A controller of the strength at one layer. The readout is (r . d - middle) / scale.

    limit: the largest strength in either direction. See `Hold` for the rest.
    """

    score: float
    integral_gain: float
    proportional_gain: float
    limit: float
    middle: float
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Intervention:
    """One resolved intervention at the layers where it acts.

    spec: as written, with every vector pinned to its version and every layer named.
    directions: layer -> (k, d_model), unit, float32. parameters: layer -> the operation's parameters in residual units;
    `relative` marks those in the operation's `scaled` as fractions of |r| at the token.
    strengths: layer -> strength in the unit of the spec, where the layers share the dose; empty without.
    planned_dose: layer -> relative dose as far as it is known before anything runs.
    holds: layer -> the controller of the weighted parameter, which is then given for the largest strength; empty without.
    """

    spec: InterventionSpec
    namespace: str
    sha256: str
    directions: Mapping[int, Float[Tensor, "k d_model"]]
    parameters: Mapping[int, tuple[float, ...]]
    relative: bool = False
    condition: ConditionTree | None = None
    strengths: Mapping[int, float] = field(default_factory=dict)
    planned_dose: Mapping[int, float] = field(default_factory=dict)
    holds: Mapping[int, ResolvedHold] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """Zero-based block indices, ascending."""
        return tuple(self.parameters)


@dataclass(frozen=True, slots=True, eq=False)
class OperationCall:
    """One call of an operation at one layer: one intervention, or neighbours merged over a basis of their directions.

    interventions: indices into the plan; the first supplies operation, parameters, scope, schedule and condition, in
    which merged ones do not differ.
    """

    interventions: tuple[int, ...]
    directions: Float[Tensor, "k d_model"]


@dataclass(frozen=True, slots=True)
class StaticAdd:
    """One intervention inside the static adds of a layer: its index in the plan, and |r' - r| in residual units."""

    intervention: int
    length: float


@dataclass(frozen=True, slots=True, eq=False)
class LayerSteering:
    """The order of a plan at one layer: the static adds, already summed, then `calls` in the order written.

    static_sum: (phase, d_model) float32, the sum of the interventions in `static_adds`; None where there are none.
    static_lengths: |static_sum| by phase, computed here, once for all requests of a plan: every report needs them, and reports
    are made between passes.
    """

    static_sum: Float[Tensor, "phase d_model"] | None = None
    static_adds: tuple[StaticAdd, ...] = ()
    calls: tuple[OperationCall, ...] = ()
    static_lengths: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        lengths = () if self.static_sum is None else tuple(self.static_sum.norm(dim=-1).tolist())
        object.__setattr__(self, "static_lengths", lengths)


@dataclass(frozen=True, slots=True, eq=False)
class SteeringPlan:
    """Everything one request's steering needs.

    interventions: in the order written. layers: that order at each layer where anything acts. thresholds: the leaves of
    all conditions.
    vectors: `name@version` -> SHA-256 of every vector that the request needs, those of conditions included.
    fingerprint: digest of all of it and of the model. prompt_fingerprint: digest of what acts on prompt positions
    before the last; empty when nothing does. reusable: whether prompt KV may be shared under that fingerprint at all.
    dose_bound: the relative dose, summed over the layers, that no token may exceed; None: the dose is not bounded.
    mandatory: how many of the interventions, the last ones, are an operator's policy. They act after the guard has bounded the
    others.
    prompt_roles: the role of each token of one prompt (None: of no message), see `encode_with_plans`; None where no scope asks.
    """

    interventions: tuple[Intervention, ...] = ()
    layers: Mapping[int, LayerSteering] = field(default_factory=dict)
    thresholds: tuple[ResolvedThreshold, ...] = ()
    fingerprint: str = ""
    prompt_fingerprint: str = ""
    reusable: bool = True
    dose_bound: float | None = None
    warnings: tuple[str, ...] = ()
    vectors: Mapping[str, str] = field(default_factory=dict)
    mandatory: int = 0
    prompt_roles: tuple[str | None, ...] | None = None

    @property
    def own(self) -> int:
        """How many of the interventions, the first ones, are the request's."""
        return len(self.interventions) - self.mandatory

    @property
    def unsteered(self) -> "SteeringPlan":
        """No steering of the same prompt: what an operator makes mandatory may ask for the roles of its tokens."""
        return UNSTEERED if self.prompt_roles is None else SteeringPlan(prompt_roles=self.prompt_roles)

    @property
    def needs_roles(self) -> bool:
        """Whether a scope asks for the roles of the tokens."""
        return any(one.spec.scope.roles is not None for one in self.interventions)

    @property
    def empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.layers

    @property
    def spec(self) -> SteeringSpec:
        """The interventions as written, pinned, so that they can be resolved again."""
        return SteeringSpec(interventions=tuple(one.spec for one in self.interventions))

    def is_exempt(self, call: OperationCall) -> bool:
        """Whether a call acts after the dose guard, in full."""
        return self.dose_bound is not None and call.interventions[0] >= self.own

    def intervention(self, call: OperationCall) -> Intervention:
        """The intervention that supplies a call's operation and parameters."""
        return self.interventions[call.interventions[0]]


UNSTEERED = SteeringPlan()
"""The plan of a request that asked for no steering."""
