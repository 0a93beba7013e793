"""resolve: a SteeringSpec becomes a SteeringPlan for one model. Names are read from the store once, here."""

from collections.abc import Iterator, Mapping

import torch
from cachetools import LRUCache

from steering.errors import InvalidRequest
from steering.model.info import ModelInfo
from steering.operations import OPERATIONS, Wish
from steering.plan.conditions import ConditionResolver
from steering.plan.dose import DoseGuard, guarded, planned_dose
from steering.plan.layers import check_model, resolve_layers
from steering.plan.program import Action, build, fingerprint, prompt_fingerprint
from steering.plan.types import UNSTEERED, Intervention, SteeringPlan, Step
from steering.spec import InterventionSpec, SteeringSpec, renamed, vector_names
from steering.store.base import VectorSource
from steering.vectors import ConceptVector, VectorId


async def resolve(
    spec: SteeringSpec, vectors: VectorSource, info: ModelInfo, *, guard: DoseGuard | None = None
) -> SteeringPlan:
    """Raises VectorNotFound, VectorModelMismatch, InvalidRequest, DoseExceeded; `param` names the intervention's field."""
    return await RecentPlans(1).resolve(spec, vectors, info, guard or DoseGuard())


class RecentPlans:
    """Plans resolved lately, at most `most` of them: traffic names the same few steerings again and again.

    Names are looked up every time. A plan is found again by the spec, the versions and the numbers its names stand for now,
    and the guard.
    """

    def __init__(self, most: int = 64) -> None:
        self._plans: LRUCache[tuple[object, ...], SteeringPlan] = LRUCache(most)

    async def resolve(
        self, spec: SteeringSpec, vectors: VectorSource, info: ModelInfo, guard: DoseGuard
    ) -> SteeringPlan:
        """See `resolve`."""
        if not spec.interventions:
            return UNSTEERED
        found: dict[str, ConceptVector] = {}
        for name in vector_names(spec):
            if name not in found:
                key = VectorId.parse(name)
                vector = await vectors.get(key.name, key.version)
                check_model(vector, info)
                found[name] = vector
        stands_for = tuple((name, vector.id, vector.sha256) for name, vector in sorted(found.items()))
        known = (spec.model_dump_json(), stands_for, guard, info)
        if known not in self._plans:
            self._plans[known] = _Resolver(spec, found, info, guard).plan()
        return self._plans[known]


class _Resolver:
    """One resolution: collects thresholds while it turns interventions into actions."""

    def __init__(
        self, spec: SteeringSpec, found: Mapping[str, ConceptVector], info: ModelInfo, guard: DoseGuard
    ) -> None:
        self._spec, self._found, self._info, self._guard = spec, found, info, guard
        self._table = ConditionResolver(found, info)
        self._warnings: list[str] = []

    def plan(self) -> SteeringPlan:
        actions: list[Action] = []
        interventions: list[Intervention] = []
        for source, item in enumerate(self._spec.interventions):
            taken = list(self._actions(source, item))
            actions.extend(taken)
            vector = self._found[item.vector]
            layers = tuple(action.layer for action in taken)
            doses = {a.layer: d for a in taken if (d := planned_dose(a.layer, a.step, self._info)) is not None}
            interventions.append(Intervention(item, vector.id, vector.sha256, layers, doses))
        programs = {
            layer: guarded(layer, program, self._info, self._guard, self._warnings.append)
            for layer, program in build(actions).items()
        }
        thresholds = tuple(self._table.thresholds)
        model = self._info.fingerprint
        prompt, reusable = prompt_fingerprint(programs, thresholds, model)
        return SteeringPlan(
            spec=SteeringSpec(interventions=tuple(self._pinned(one) for one in interventions)),
            interventions=tuple(interventions),
            layers=programs,
            thresholds=thresholds,
            fingerprint=fingerprint(programs, thresholds, model),
            prompt_fingerprint=prompt,
            reusable=reusable,
            warnings=tuple(self._warnings),
            vectors={vector.id: vector.sha256 for vector in self._found.values()},
        )

    def _pinned(self, one: Intervention) -> InterventionSpec:
        return renamed(one.spec, {name: vector.id for name, vector in self._found.items()}, one.layers)

    def _actions(self, source: int, item: InterventionSpec) -> Iterator[Action]:
        operation = OPERATIONS[item.operation]
        _check_fields(item)
        vector = self._found[item.vector]
        target = None if item.to is None else self._found[item.to]
        layers = resolve_layers(item.layers, vector, self._info.layer_count)
        decision = None if item.when is None else self._table.decision(item.when)
        self._table.check_order(item, layers[0], decision)
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
