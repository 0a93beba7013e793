"""resolve: a SteeringSpec becomes a SteeringPlan for one model. Names are read from the store once, here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import pi, sin
from typing import Literal

import torch

from steering.conditions import CONDITIONS
from steering.errors import DoseExceeded, InvalidRequest, VectorModelMismatch
from steering.model.info import ModelInfo
from steering.operations import OPERATIONS, Wish
from steering.plan import (
    SCOPE_PHASES,
    UNSTEERED,
    Decision,
    Intervention,
    LayerProgram,
    Phase,
    SteeringPlan,
    Step,
    ThresholdPlan,
)
from steering.program import Action, build, fingerprint, is_uniform, prompt_fingerprint
from steering.spec import (
    AllOf,
    AnyOf,
    ConditionSpec,
    InterventionSpec,
    LayerRange,
    Layers,
    Not,
    SteeringSpec,
    Threshold,
)
from steering.store.base import VectorSource
from steering.vectors import ConceptVector, VectorId


@dataclass(frozen=True, slots=True)
class DoseGuard:
    """What happens when the planned relative dose of the adds at a layer is beyond `bound`.

    warn: the answer says so. limit: the adds at that layer are scaled down to the bound, and the answer says so.
    refuse: DoseExceeded. The default bound is where the embedded model's text begins to break (docs/mathematics.md).
    """

    bound: float = 1.0
    action: Literal["off", "warn", "limit", "refuse"] = "warn"


async def resolve(
    spec: SteeringSpec, vectors: VectorSource, info: ModelInfo, *, guard: DoseGuard | None = None
) -> SteeringPlan:
    """Raises VectorNotFound, VectorModelMismatch, InvalidRequest, DoseExceeded; `param` names the intervention's field."""
    if not spec.interventions:
        return UNSTEERED
    found: dict[str, ConceptVector] = {}
    for name in _names(spec):
        if name not in found:
            key = VectorId.parse(name)
            vector = await vectors.get(key.name, key.version)
            check_model(vector, info)
            found[name] = vector
    return _Resolver(spec, found, info, guard or DoseGuard()).plan()


def _names(spec: SteeringSpec) -> Iterator[str]:
    for item in spec.interventions:
        yield item.vector
        if item.to is not None:
            yield item.to
        if item.when is not None:
            yield from _condition_names(item.when)


def _condition_names(condition: ConditionSpec) -> Iterator[str]:
    match condition:
        case Threshold():
            yield condition.vector
        case AllOf():
            for child in condition.all:
                yield from _condition_names(child)
        case AnyOf():
            for child in condition.any:
                yield from _condition_names(child)
        case Not():
            yield from _condition_names(condition.not_)


def check_model(vector: ConceptVector, info: ModelInfo) -> None:
    """Raises VectorModelMismatch unless the vector was made for the loaded model."""
    if vector.d_model != info.d_model:
        raise VectorModelMismatch(
            f"vector {vector.id} has d_model {vector.d_model}, the loaded model has {info.d_model}", param="vector"
        )
    if vector.model_fingerprint != info.fingerprint:
        raise VectorModelMismatch(
            f"vector {vector.id} was made for model {vector.model!r}, loaded is {info.name!r}", param="vector"
        )


def resolve_layers(layers: Layers, vector: ConceptVector, layer_count: int) -> tuple[int, ...]:
    """Zero-based block indices, ascending. Raises InvalidRequest for a layer the model or the vector does not have."""
    if layers == "recommended":
        wanted = list(vector.recommended_layers())
    elif layers == "all":
        wanted = list(vector.layers)
    elif isinstance(layers, LayerRange):
        start, end = (_positive(value, layer_count, inclusive=True) for value in (layers.from_, layers.to))
        wanted = list(range(start, end))
        if not wanted:
            raise InvalidRequest(f"layers from {layers.from_} to {layers.to} are none", param="layers")
    else:
        wanted = [_positive(int(layer), layer_count) for layer in layers]
    missing = [layer for layer in wanted if layer not in vector.layers]
    if missing:
        raise InvalidRequest(
            f"vector {vector.id} has no direction at layers {missing}; it has {sorted(vector.layers)}", param="layers"
        )
    return tuple(sorted(set(wanted)))


def _positive(layer: int, layer_count: int, *, inclusive: bool = False) -> int:
    resolved = layer + layer_count if layer < 0 else layer
    if not 0 <= resolved < layer_count + (1 if inclusive else 0):
        raise InvalidRequest(
            f"layer {layer} does not exist; the model has layers 0 to {layer_count - 1}", param="layers"
        )
    return resolved


class _Resolver:
    """One resolution: collects thresholds while it turns interventions into actions."""

    def __init__(
        self, spec: SteeringSpec, found: Mapping[str, ConceptVector], info: ModelInfo, guard: DoseGuard
    ) -> None:
        self._spec, self._found, self._info, self._guard = spec, found, info, guard
        self._thresholds: list[ThresholdPlan] = []
        self._known: dict[Threshold, int] = {}
        self._warnings: list[str] = []

    def plan(self) -> SteeringPlan:
        actions: list[Action] = []
        interventions: list[Intervention] = []
        for source, item in enumerate(self._spec.interventions):
            taken = list(self._actions(source, item))
            actions.extend(taken)
            vector = self._found[item.vector]
            layers = tuple(action.layer for action in taken)
            doses = {a.layer: d for a in taken if (d := self._planned_dose(a.layer, a.step)) is not None}
            interventions.append(Intervention(item, vector.id, vector.sha256, layers, doses))
        programs = {layer: self._guarded(layer, program) for layer, program in build(actions).items()}
        thresholds = tuple(self._thresholds)
        model = self._info.fingerprint
        prompt, reusable = prompt_fingerprint(programs, thresholds, model)
        return SteeringPlan(
            spec=self._spec,
            interventions=tuple(interventions),
            layers=programs,
            thresholds=thresholds,
            fingerprint=fingerprint(programs, thresholds, model),
            prompt_fingerprint=prompt,
            reusable=reusable,
            uniform=is_uniform(programs),
            warnings=tuple(self._warnings),
        )

    def _actions(self, source: int, item: InterventionSpec) -> Iterator[Action]:
        operation = OPERATIONS[item.operation]
        _check_fields(item)
        vector = self._found[item.vector]
        target = None if item.to is None else self._found[item.to]
        layers = resolve_layers(item.layers, vector, self._info.layer_count)
        decision = None if item.when is None else self._decision(item.when)
        self._check_order(item, layers[0], decision)
        for layer in layers:
            entry = vector.at(layer)
            directions = [entry.direction]
            ratio = 1.0
            if target is not None:
                other = target.at(layer)
                directions.append(other.direction)
                ratio = other.scale / entry.scale if item.unit == "scale" else 1.0
            wish = Wish(
                strength=item.strength,
                unit_size=entry.scale if item.unit == "scale" else 1.0,
                low=item.low,
                high=item.high,
                degrees=item.degrees,
                ratio=ratio,
            )
            step = Step(
                operation=item.operation,
                directions=torch.stack(directions),
                parameters=operation.resolve(wish),
                relative=item.unit == "relative" and bool(operation.scaled),
                scope=item.scope,
                schedule=item.schedule,
                decision=decision,
                sources=(source,),
            )
            yield Action(layer, step)

    def _decision(self, condition: ConditionSpec) -> Decision:
        match condition:
            case Threshold():
                return Decision("threshold", self._threshold(condition))
            case AllOf():
                return Decision("all", children=tuple(self._decision(child) for child in condition.all))
            case AnyOf():
                return Decision("any", children=tuple(self._decision(child) for child in condition.any))
            case Not():
                return Decision("not", children=(self._decision(condition.not_),))

    def _threshold(self, spec: Threshold) -> int:
        if spec in self._known:
            return self._known[spec]
        vector = self._found[spec.vector]
        wanted: Layers = "recommended" if spec.layer is None else (spec.layer,)
        layer = resolve_layers(wanted, vector, self._info.layer_count)[0]
        entry = vector.at(layer)
        names = CONDITIONS[spec.score].parameters
        values = [getattr(entry, name) for name in names]
        if None in values:
            raise InvalidRequest(
                f"vector {vector.id} carries no probe; condition score {spec.score!r} needs one", param="when"
            )
        bound = spec.above if spec.above is not None else spec.below
        assert bound is not None, "Threshold has exactly one bound"
        self._thresholds.append(
            ThresholdPlan(
                vector=vector.id,
                score=spec.score,
                layer=layer,
                direction=entry.direction,
                parameters=tuple(float(value) for value in values),
                above=spec.above is not None,
                bound=float(bound),
                until=spec.until,
                at=spec.at,
            )
        )
        self._known[spec] = len(self._thresholds) - 1
        return self._known[spec]

    def _check_order(self, item: InterventionSpec, first_layer: int, decision: Decision | None) -> None:
        """A condition read at a later layer is heard of one token later, which prompt positions cannot wait for."""
        if decision is None:
            return
        for leaf in decision.leaves():
            threshold = self._thresholds[leaf]
            late = threshold.layer > first_layer
            before_end = Phase.PROMPT in SCOPE_PHASES[item.scope.tokens] and threshold.at == "token"
            only_prompt = Phase.GENERATED not in SCOPE_PHASES[item.scope.tokens]
            if late and (before_end or only_prompt):
                raise InvalidRequest(
                    f"the condition reads layer {threshold.layer}, after layer {first_layer} where it is to act: it is "
                    f"heard of one token later, so scope {item.scope.tokens!r} cannot obey it; use scope 'generated' "
                    f"or a condition layer up to {first_layer}",
                    param="when",
                )

    def _planned_dose(self, layer: int, step: Step) -> float | None:
        """Relative dose against the layer's typical norm, where it is known before the residual is met."""
        weight = abs(step.parameters[0])
        if step.operation == "rotate":
            return 2.0 * sin(min(weight, pi) / 2.0)
        if step.operation != "add":
            return None
        if step.relative:
            return weight
        return weight / self._info.typical_norms[layer] if self._info.typical_norms else None

    def _guarded(self, layer: int, program: LayerProgram) -> LayerProgram:
        if program.opening is None or not self._info.typical_norms or self._guard.action == "off":
            return program
        dose = float(program.opening.norm(dim=1).max()) / self._info.typical_norms[layer]
        if dose <= self._guard.bound:
            return program
        said = f"the planned relative dose at layer {layer} is {dose:.2f}, beyond the bound of {self._guard.bound:g}"
        if self._guard.action == "refuse":
            raise DoseExceeded(said, param="steering")
        if self._guard.action == "warn":
            self._warnings.append(f"{said}: text may break")
            return program
        share = self._guard.bound / dose
        self._warnings.append(f"{said}: the adds there were scaled down by {share:.2f}")
        adds = tuple(type(add)(add.source, add.amount * share, add.phases) for add in program.opening_adds)
        return LayerProgram(program.opening * share, adds, program.steps)


def _check_fields(item: InterventionSpec) -> None:
    """A field that an operation does not use was meant to do something, so it is refused, never ignored."""
    operation = OPERATIONS[item.operation]
    every = frozenset({"low", "high", "degrees", "to"})
    given = {name for name in every if getattr(item, name) is not None}
    stray = sorted(given - operation.fields)
    if stray:
        raise InvalidRequest(f"operation {item.operation!r} takes no {', '.join(stray)}", param=stray[0])
    missing = sorted(operation.required - given)
    if missing:
        raise InvalidRequest(f"operation {item.operation!r} needs {', '.join(missing)}", param=missing[0])
