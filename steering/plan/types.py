"""SteeringPlan: a SteeringSpec resolved for one model. Names have become edits, strengths residual units."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from steering.model.phases import PhaseRules
from steering.shapes import Float, Tensor
from steering.spec import ConditionKind, InterventionSpec, SteeringSpec

LINEAR, RELU, ROTATE, HEAD = range(4)
"""Kinds of an edit, as in the tables of the device."""
MAX_HOLDS = 64
"""Controllers of a request, counted over layers."""


BOUND = 0.2
"""Relative dose at which perplexity reaches 1.5 times on half of the starter concepts (docs/dose_response_results.md)."""


@dataclass(frozen=True, slots=True)
class DoseGuard:
    """What happens when the relative dose of a request, summed over its layers, is beyond `bound`.

    warn: a planned dose beyond the bound is a warning.
    clamp: also, the change is scaled down at every token where it would exceed the bound.
    refuse: a plan that is known to exceed the bound raises DoseExceeded; what shows only at run time is scaled down.
    warned: a smaller bound, beyond which a planned dose is a warning, whatever the action.
    """

    bound: float = BOUND
    action: Literal["off", "warn", "clamp", "refuse"] = "warn"
    warned: float | None = None

    @property
    def run_time_bound(self) -> float | None:
        """The bound that holds at every token; None where it is only reported."""
        return self.bound if self.action in ("clamp", "refuse") else None


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedThreshold:
    """One test. It holds where score > bound (`above`) or score < bound; with `until`, hysteresis.

    direction: (d_model,), float32, unit.
    parameters: those of the condition named by `score`.
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
        """Returns the indices of the thresholds it depends on."""
        if self.kind == "threshold":
            return frozenset({self.threshold})
        return frozenset().union(*(child.leaves() for child in self.children))

    def moved(self, by: int) -> "ConditionTree":
        """Returns the tree with `by` added to the index of every threshold."""
        threshold = self.threshold + by if self.kind == "threshold" else -1
        return ConditionTree(self.kind, threshold, tuple(child.moved(by) for child in self.children))


@dataclass(frozen=True, slots=True)
class ResolvedHold:
    """A controller at one layer, see `Hold`, of (r . d - middle) / scale. limit: the largest strength either way."""

    score: float
    integral_gain: float
    proportional_gain: float
    limit: float
    middle: float
    scale: float


@dataclass(frozen=True, slots=True)
class HeldReadout:
    """What a controller did at one layer: means over the generated tokens at which it acted.

    score: the readout after steering.
    strength, last_strength: in natural scales.
    """

    score: float
    strength: float
    last_strength: float


@dataclass(frozen=True, slots=True, eq=False)
class Intervention:
    """One resolved intervention. What it does to a residual is in the edits of the plan's layers.

    spec: as written, with every vector pinned to its version and every layer named.
    layers: zero-based block indices, ascending.
    strengths: layer -> strength in the unit of the spec, where the layers share the dose; empty without.
    planned_dose: layer -> relative dose as far as it is known before anything runs.
    holds: point -> the controller that sets the weight of its edit, which is given for the largest strength; empty without.
    """

    spec: InterventionSpec
    namespace: str
    sha256: str
    layers: tuple[int, ...]
    condition: ConditionTree | None = None
    strengths: Mapping[int, float] = field(default_factory=dict)
    planned_dose: Mapping[int, float] = field(default_factory=dict)
    holds: Mapping[int, ResolvedHold] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Edits:
    """What one intervention does at one point, or several equal removals together: k edits with one weight per token.

    key: digest of all that decides the result.
    prompt_key: digest of what decides it on prompt positions before the last; empty where it does not act there.
    interventions: indices into the plan; scope, schedule, condition and controller are equal, and read of the first.
    write: unit vectors; their lengths are in `numbers`.
    read: zeros where an edit reads nothing.
    numbers: bias, bias in |r|, weight.
    kinds: LINEAR, RELU, ROTATE or HEAD by edit.
    mandatory: reads what the request's own edits left.
    """

    key: str
    prompt_key: str
    interventions: tuple[int, ...]
    write: Float[Tensor, "edit d_model"]
    read: Float[Tensor, "edit d_model"]
    numbers: Float[Tensor, "edit 3"]
    kinds: tuple[int, ...]
    mandatory: bool = False

    @property
    def owner(self) -> int:
        """The intervention that supplies the weight; doses are summed under its index."""
        return self.interventions[0]


@dataclass(frozen=True, slots=True, eq=False)
class SteeringPlan:
    """Everything one request's steering needs.

    interventions: in the order written, which changes nothing.
    layers: the edits by layer, or rather by point (`steering/model/hook_points.py`), as a pass computes them: the request's own, then
    mandatory ones, each sorted by prompt key and key, so that edits that do the same to two prompts are added in one order.
    thresholds: the leaves of all conditions.
    vectors: `name@version` -> SHA-256 of every vector that the request needs, those of conditions included.
    fingerprint: digest of all of it and of the model.
    prompt_fingerprint: digest of what acts on prompt positions before the last; empty when nothing does.
    reusable: whether prompt KV may be shared under that fingerprint at all.
    dose_bound: the relative dose, summed over the layers, that no token may exceed; None where it is not bounded.
    mandatory: how many of the interventions, the last ones, are an operator's. The dose guard does not bound them.
    prompt_roles: the role of each token of one prompt, see `encode_with_plans`; None where no scope asks.
    phases: what decides the phases of one answer, in the same way.
    stored: how many of the interventions, the first ones, the request did not list itself: of a profile, a default or a record.
    """

    interventions: tuple[Intervention, ...] = ()
    layers: Mapping[int, tuple[Edits, ...]] = field(default_factory=dict)
    thresholds: tuple[ResolvedThreshold, ...] = ()
    fingerprint: str = ""
    prompt_fingerprint: str = ""
    reusable: bool = True
    dose_bound: float | None = None
    warnings: tuple[str, ...] = ()
    vectors: Mapping[str, str] = field(default_factory=dict)
    mandatory: int = 0
    prompt_roles: tuple[str | None, ...] | None = None
    phases: PhaseRules | None = None
    stored: int = 0

    @property
    def own(self) -> int:
        """How many of the interventions, the first ones, are the request's."""
        return len(self.interventions) - self.mandatory

    @property
    def unsteered(self) -> "SteeringPlan":
        """No steering of the same prompt: what an operator makes mandatory may ask for the roles of its tokens."""
        if self.prompt_roles is None and self.phases is None:
            return UNSTEERED
        return SteeringPlan(prompt_roles=self.prompt_roles, phases=self.phases)

    @property
    def tensor_bytes(self) -> int:
        """The bytes of its edits and of the directions of its thresholds."""
        edits = (one for at_layer in self.layers.values() for one in at_layer)
        return sum(one.write.nbytes + one.read.nbytes + one.numbers.nbytes for one in edits) + sum(
            one.direction.nbytes for one in self.thresholds
        )

    @property
    def needs_roles(self) -> bool:
        """Whether a scope asks for the roles of the tokens."""
        return any(one.spec.scope.roles is not None for one in self.interventions)

    @property
    def needs_phases(self) -> bool:
        """Whether a scope asks for the phases of the tokens."""
        return any(one.spec.scope.phase is not None for one in self.interventions)

    @property
    def empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.layers

    @property
    def held(self) -> dict[tuple[int, int], int]:
        """(point, intervention) -> number of its controller among those of the plan."""
        owners = [(layer, one.owner) for layer, edits in self.layers.items() for one in edits]
        places = [(layer, owner) for layer, owner in owners if self.interventions[owner].holds]
        return {place: number for number, place in enumerate(places)}

    @property
    def columns(self) -> int:
        """How many weights a token has: of the interventions, then of the controllers."""
        return len(self.interventions) + len(self.held)

    @property
    def spec(self) -> SteeringSpec:
        """The interventions as written, pinned, so that they can be resolved again."""
        return SteeringSpec(interventions=tuple(one.spec for one in self.interventions))


UNSTEERED = SteeringPlan()
"""The plan of a request that asked for no steering."""
