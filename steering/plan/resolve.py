"""Resolves a SteeringSpec into a SteeringPlan for one model. Names are read from the store once, here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cachetools import LRUCache

from steering.condition_spec import MAX_CONDITION_NODES, condition_nodes
from steering.errors import InvalidRequest, LimitExceeded
from steering.model.info import ModelInfo
from steering.operations import OPERATIONS, Edit
from steering.plan.conditions import ConditionResolver
from steering.plan.dose import DoseGuard, check_planned_dose, planned_dose, shared_strengths
from steering.plan.edits import EditBuilder, is_constant
from steering.plan.fingerprint import fingerprinted
from steering.plan.holds import check_holds, resolve_hold
from steering.plan.layers import check_model, inline_vector, resolve_layers
from steering.plan.types import UNSTEERED, Intervention, SteeringPlan
from steering.spec import InterventionSpec, SteeringSpec, pinned, renamed, vector_names
from steering.spec_base import InlineVector
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId, VectorSource

MAX_LAYER_ACTIONS = 2048
"""Interventions times the layers at which each acts: a plan holds a direction for each."""
MAX_CALLS = 256
"""Those that are computed at every token. 256 calls take 5 to 23 ms of every decode pass of up to 32 rows (d_model 576)."""
_PREFIX = "mandatory/"
"""No name of a caller has a slash: `mood@1` of a request and of the operator may be vectors of two namespaces."""


class Mandatory:
    """Interventions that an operator adds to every request, after its own. vectors: at hand, by the names in `spec`.

    interventions, found: the same under names that no request can write, and their vectors. key: equal for equal content.
    """

    def __init__(self, spec: SteeringSpec | None = None, vectors: Mapping[str, ConceptVector] | None = None) -> None:
        spec, vectors = spec or SteeringSpec(), vectors or {}
        self.interventions = pinned(spec, {name: _PREFIX + name for name in vectors}).interventions
        self.found = {_PREFIX + name: vector for name, vector in vectors.items()}
        self.key = (spec.model_dump_json(), tuple((one.id, one.sha256) for one in vectors.values()))


_NONE = Mandatory()


async def resolve(
    spec: SteeringSpec, vectors: VectorSource, info: ModelInfo, *, guard: DoseGuard | None = None
) -> SteeringPlan:
    """Raises VectorNotFound, VectorModelMismatch, InvalidRequest, DoseExceeded; `param` names the intervention's field."""
    return await RecentPlans(1).resolve(spec, vectors, info, guard or DoseGuard())


class RecentPlans:
    """Caches the `most` latest plans, because traffic repeats the same few steerings.

    Names are looked up every time. The key is the spec, the namespaces, versions and digests its names stand for now, and the guard.
    """

    def __init__(self, most: int = 64) -> None:
        self._plans: LRUCache[tuple[object, ...], SteeringPlan] = LRUCache(most)

    async def resolve(
        self, spec: SteeringSpec, vectors: VectorSource, info: ModelInfo, guard: DoseGuard, mandatory: Mandatory = _NONE
    ) -> SteeringPlan:
        """See `resolve`. mandatory: what acts after it."""
        if not (spec.interventions or mandatory.interventions):
            return UNSTEERED
        found: dict[str, ConceptVector] = {}
        for name in vector_names(spec):
            if isinstance(name, InlineVector):
                if found.setdefault(str(name), inline_vector(name, info)).sha256 != name.sha256:
                    message = "two inline directions have the same first 12 digits of their digest"
                    raise InvalidRequest(message, param="vector")
            elif name not in found:
                key = VectorId.parse(name)
                vector = await vectors.get(key.name, key.version)
                check_model(vector, info)
                found[name] = vector
        versions = tuple((name, vector.namespace, vector.id, vector.sha256) for name, vector in sorted(found.items()))
        known = (_by_name(spec).model_dump_json(), versions, guard, info, mandatory.key)
        plan = self._plans.get(known)
        if plan is None:
            # hashes up to MAX_LAYER_ACTIONS directions, which takes longer than the event loop may stand still
            resolver = _Resolver(spec, found, info, guard, mandatory)
            plan = self._plans[known] = await run_in_thread(resolver.plan)
        return plan


class _Resolver:
    """Resolves one spec and what is mandatory; their vectors are at hand. own: the vectors of the spec."""

    def __init__(
        self,
        spec: SteeringSpec,
        own: Mapping[str, ConceptVector],
        info: ModelInfo,
        guard: DoseGuard,
        mandatory: Mandatory,
    ) -> None:
        self._spec = SteeringSpec(interventions=(*spec.interventions, *mandatory.interventions))
        self._own, self._found = own, {**own, **mandatory.found}
        self._info, self._mandatory = info, len(mandatory.interventions)
        # the bound is of what the request adds: what an operator has set is neither refused nor scaled down
        only_mandatory = not spec.interventions and guard.action != "off"
        self._guard = replace(guard, action="warn") if only_mandatory else guard
        self._conditions = ConditionResolver(self._found, info)
        self._warnings: list[str] = []

    def plan(self) -> SteeringPlan:
        """The whole plan. Raises InvalidRequest, DoseExceeded."""
        self._check_size()
        resolved = [self._intervention(item) for item in self._spec.interventions]
        interventions, edits = [one for one, _ in resolved], [found for _, found in resolved]
        self._check_costly(edits)
        thresholds = tuple(self._conditions.thresholds)
        layers = EditBuilder(interventions, len(interventions) - self._mandatory, thresholds).layers(edits)
        if layers:
            check_planned_dose(interventions, edits, self._info, self._guard, self._warnings.append)
        plan = SteeringPlan(
            interventions=tuple(interventions),
            layers=layers,
            thresholds=thresholds,
            dose_bound=self._guard.run_time_bound if layers else None,
            warnings=tuple(self._warnings),
            vectors={vector.id: vector.sha256 for vector in self._own.values()},
            mandatory=self._mandatory,
        )
        return fingerprinted(plan, self._info.fingerprint)

    def _check_size(self) -> None:
        """Bounds what a plan may cost before any of it is built. Raises LimitExceeded."""
        conditions = [item.when for item in self._spec.interventions if item.when is not None]
        nodes = sum(1 for condition in conditions for _ in condition_nodes(condition))
        if nodes > MAX_CONDITION_NODES:
            raise LimitExceeded(
                f"the conditions have {nodes} nodes together; at most {MAX_CONDITION_NODES} are allowed", param="when"
            )
        sizes = [
            (item, len(resolve_layers(item.layers, self._found[item.vector], self._info.layer_count)))
            for item in self._spec.interventions
        ]
        check_holds(sizes)
        total = sum(count for _, count in sizes)
        if total > MAX_LAYER_ACTIONS:
            raise LimitExceeded(
                f"the interventions act {total} times, counted over their layers; at most {MAX_LAYER_ACTIONS} are "
                "allowed; name fewer layers, or combine vectors into one",
                param="steering",
            )

    def _check_costly(self, edits: Sequence[Mapping[int, tuple[Edit, ...]]]) -> None:
        """Bounds what is computed at every token. Raises LimitExceeded."""
        costly = sum(
            any(not is_constant(edit, item) for edit in found)
            for item, by_layer in zip(self._spec.interventions, edits, strict=True)
            for found in by_layer.values()
        )
        if costly > MAX_CALLS:
            raise LimitExceeded(
                f"{costly} operations are computed at every token, counted over their layers; at most {MAX_CALLS} are "
                "allowed (unconditional adds in unit 'scale' or 'raw' do not count)",
                param="steering",
            )

    def _intervention(self, item: InterventionSpec) -> tuple[Intervention, dict[int, tuple[Edit, ...]]]:
        """An intervention, and its edits by layer."""
        operation = OPERATIONS[item.operation]
        _check_fields(item)
        vector = self._found[item.vector]
        target = None if item.to is None else self._found[item.to]
        layers = resolve_layers(item.layers, vector, self._info.layer_count)
        condition = None if item.when is None else self._conditions.tree(item.when)
        self._conditions.check_order(item, layers[0], condition)
        strengths = shared_strengths(item, vector, layers, self._info.typical_norms) if item.share_dose else {}
        edits: dict[int, tuple[Edit, ...]] = {}
        for layer in layers:
            here = item.model_copy(update={"strength": strengths[layer]}) if strengths else item
            edits[layer] = operation.edits(here, vector.at(layer), None if target is None else target.at(layer))
        norms = dict(enumerate(self._info.typical_norms))
        planned = {layer: planned_dose(found, norms.get(layer)) for layer, found in edits.items()}
        spec = renamed(item, {name: found.id for name, found in self._found.items()}, layers=layers)
        self._warnings += operation.warnings(spec, {layer: vector.at(layer) for layer in layers})
        intervention = Intervention(
            spec=spec,
            namespace=vector.namespace,
            sha256=vector.sha256,
            layers=layers,
            strengths=strengths,
            condition=condition,
            planned_dose={layer: dose for layer, dose in planned.items() if dose is not None},
            holds={} if item.hold is None else {layer: resolve_hold(item, vector.at(layer)) for layer in layers},
        )
        return intervention, edits


def _by_name(spec: SteeringSpec) -> SteeringSpec:
    """Returns the spec with names in place of inline directions, whose digests are part of the key already."""
    names = list(vector_names(spec))
    if not any(isinstance(name, InlineVector) for name in names):
        return spec
    return pinned(spec, {name: str(name) for name in names})


def _check_fields(item: InterventionSpec) -> None:
    """Refuses a field that the operation does not use: it was meant to do something. Also one that is missing."""
    operation = OPERATIONS[item.operation]
    known = frozenset().union(*(entry.fields for entry in OPERATIONS.values()))
    given = {name for name in known if getattr(item, name) is not None}
    unused = sorted(given - operation.fields)
    if unused:
        raise InvalidRequest(f"operation {item.operation!r} takes no {', '.join(unused)}", param=unused[0])
    missing = sorted(operation.required - given)
    if missing:
        raise InvalidRequest(f"operation {item.operation!r} needs {', '.join(missing)}", param=missing[0])
