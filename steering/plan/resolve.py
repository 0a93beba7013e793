"""Resolves a SteeringSpec into a SteeringPlan for one model, and puts the interventions of a policy behind it.

Names are read from the store once, here; layers become zero-based block indices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from cachetools import LRUCache

from steering.conditions import CONDITIONS
from steering.errors import InvalidRequest, LimitExceeded, VectorModelMismatch
from steering.layer_indices import layer_index, layer_indices
from steering.maps import LowRankMap
from steering.model.hook_points import in_order, layer_of, points_of
from steering.model.info import ModelInfo
from steering.operations import OPERATIONS, Edit
from steering.plan.dose import check_planned_dose, planned_dose, shared_strengths
from steering.plan.edits import EditBuilder, fingerprinted, is_constant
from steering.plan.scope import SCOPE_PHASES, Phase
from steering.plan.types import (
    MAX_HOLDS,
    UNSTEERED,
    ConditionTree,
    DoseGuard,
    Intervention,
    ResolvedHold,
    ResolvedThreshold,
    SteeringPlan,
)
from steering.spec import (
    MAX_CONDITION_NODES,
    ConditionSpec,
    Hook,
    InlineVector,
    InterventionSpec,
    LayerRange,
    Layers,
    SteeringSpec,
    Threshold,
    children_of,
    condition_kind,
    condition_nodes,
    pinned,
    renamed,
    vector_names,
)
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection, VectorId, VectorSource, unit


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
        wanted = list(_range_of(layers, layer_count))
    else:
        wanted = [layer_index(int(layer), layer_count) for layer in layers]
    if missing := [layer for layer in wanted if layer not in vector.layers]:
        raise InvalidRequest(
            f"vector {vector.id} has no direction at layers {missing}; it has {sorted(vector.layers)}", param="layers"
        )
    return tuple(sorted(set(wanted)))


def _range_of(layers: LayerRange, layer_count: int) -> tuple[int, ...]:
    """Returns the layers of a range. Raises InvalidRequest for one without any."""
    ends = layers.from_, layers.to  # the second is exclusive, so it may be one past the last layer
    wanted = tuple(range(*(end if end == layer_count else layer_index(end, layer_count) for end in ends)))
    if not wanted:
        raise InvalidRequest(f"the range of layers from {layers.from_} to {layers.to} is empty", param="layers")
    return wanted


def given_layers(
    info: ModelInfo,
    directions: Mapping[str, Sequence[float]],
    scale: Mapping[str, float] | None,
    maps: Mapping[str, LowRankMap] | None = None,
) -> dict[int, LayerDirection]:
    """Returns unit directions by layer from numbers by layer (d_model each). maps: one whose layer has no direction
    gives it. Without a scale the norm is the natural scale. Raises VectorModelMismatch for another d_model or a
    layer the model does not have, InvalidRequest for zero or infinity."""
    maps = maps or {}
    for key, given in maps.items():
        given.check(layer_index(int(key), info.layer_count, param="maps", error=VectorModelMismatch), info.d_model)
    directions = {key: given.direction().tolist() for key, given in maps.items()} | dict(directions)
    if stray := sorted(set(scale or ()) - set(directions)):
        raise InvalidRequest(f"scale names layers {stray} that have no direction", param="scale")
    layers: dict[int, LayerDirection] = {}
    for key, values in directions.items():
        layer = layer_index(int(key), info.layer_count, param="directions", error=VectorModelMismatch)
        if len(values) != info.d_model:
            raise VectorModelMismatch(
                f"layer {layer} has {len(values)} numbers; the model's d_model is {info.d_model}", param="directions"
            )
        direction, norm = unit(torch.tensor(values, dtype=torch.float32), layer)
        kappa = norm if scale is None else scale.get(key, norm)
        layers[layer] = LayerDirection(direction, scale=kappa, map=maps.get(key))
    return dict(sorted(layers.items()))


def inline_vector(name: InlineVector, info: ModelInfo) -> ConceptVector:
    """Builds the vector of a direction given in a request. Raises what `given_layers` raises."""
    layers = given_layers(info, name.directions, name.scale)
    of = info.name, info.fingerprint, info.d_model
    return ConceptVector("inline", *of, "given", layers, sha256=name.sha256, inline=True)


MAX_LAYER_ACTIONS = 2048
"""Interventions times the layers at which each acts, a map counted by its rank: a plan holds a direction for each."""
MAX_CALLS = 256
"""Those that are computed at every token. 256 calls take 5 to 23 ms of every decode pass of up to 32 rows (d_model 576)."""
MOST_PLANS, MOST_PLAN_BYTES = 64, 256 << 20
"""Plans that a cache keeps, and the bytes of their tensors: one plan may have MAX_LAYER_ACTIONS directions, 134 MB with d_model 8192."""
_PREFIX = "mandatory/"
"""No name of a caller has a slash: `mood@1` of a request and of the operator may be vectors of two namespaces."""


class Mandatory:
    """Interventions that an operator adds to every request, after its own. Where they act on answers they act on JSON too: a request
    decides which of both its answer is.

    interventions, vectors: under names that no request can write.
    key: equal for equal content.
    """

    def __init__(self, spec: SteeringSpec | None = None, vectors: Mapping[str, ConceptVector] | None = None) -> None:
        """vectors: by the names in `spec`."""
        spec, vectors = spec or SteeringSpec(), vectors or {}
        self.interventions = tuple(
            map(_in_json, pinned(spec, {name: _PREFIX + name for name in vectors}).interventions)
        )
        self.vectors = {_PREFIX + name: vector for name, vector in vectors.items()}
        self.key = (spec.model_dump_json(), tuple((vector.id, vector.sha256) for vector in vectors.values()))


def _in_json(item: InterventionSpec) -> InterventionSpec:
    phase = item.scope.phase
    if phase is None or "answer" not in phase or "json" in phase:
        return item
    return item.model_copy(update={"scope": item.scope.model_copy(update={"phase": (*phase, "json")})})


_NONE = Mandatory()


async def resolve(
    spec: SteeringSpec, vectors: VectorSource, info: ModelInfo, *, guard: DoseGuard | None = None
) -> SteeringPlan:
    """Raises VectorNotFound, VectorModelMismatch, InvalidRequest, DoseExceeded; `param` names the intervention's field."""
    return await RecentPlans(1).resolve(spec, vectors, info, guard or DoseGuard())


def plan_cache(most: int = MOST_PLANS, most_bytes: int = MOST_PLAN_BYTES) -> LRUCache[Any, SteeringPlan]:
    """Returns a cache that keeps at most so many plans, whose tensors take at most so many bytes; a plan that takes more is kept alone."""
    share = most_bytes // most  # what each counts at least, so that no more than `most` fit
    return LRUCache(most_bytes, getsizeof=lambda plan: min(max(plan.tensor_bytes, share), most_bytes))


class RecentPlans:
    """Caches the latest plans. Names are looked up every time: the key has the versions that they stand for now.

    most, most_bytes: see `plan_cache`.
    """

    def __init__(self, most: int = MOST_PLANS, most_bytes: int = MOST_PLAN_BYTES) -> None:
        self._plans = plan_cache(most, most_bytes)

    async def resolve(
        self, spec: SteeringSpec, vectors: VectorSource, info: ModelInfo, guard: DoseGuard, mandatory: Mandatory = _NONE
    ) -> SteeringPlan:
        """See `resolve`. mandatory: what acts after it."""
        if not (spec.interventions or mandatory.interventions):
            return UNSTEERED
        found: dict[str, ConceptVector] = {}
        names = tuple(vector_names(spec))
        for name in names:
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
        # names in place of inline directions, whose digests are among the versions
        inline = any(isinstance(name, InlineVector) for name in names)
        by_name = pinned(spec, {name: str(name) for name in names}) if inline else spec
        # what is unset counts: in some chats an absent scope is another one than a written default
        model = (info.fingerprint, info.typical_norms, info.hooks, info.head_count)
        known = (by_name.model_dump_json(exclude_unset=True), versions, guard, model, mandatory.key)
        plan = self._plans.get(known)
        if plan is None:
            # hashes up to MAX_LAYER_ACTIONS directions, which takes longer than the event loop may stand still
            resolver = _Resolver(spec, found, info, guard, mandatory)
            plan = self._plans[known] = await run_in_thread(resolver.plan)
        return plan


class _Resolver:
    """Resolves one spec and what is mandatory. own: the vectors of the spec."""

    def __init__(
        self,
        spec: SteeringSpec,
        own: Mapping[str, ConceptVector],
        info: ModelInfo,
        guard: DoseGuard,
        mandatory: Mandatory,
    ) -> None:
        self._items = (*spec.interventions, *mandatory.interventions)
        self._own, self._found = own, {**own, **mandatory.vectors}
        self._info, self._mandatory = info, len(mandatory.interventions)
        # the bound is of what the request adds: what an operator has set is neither refused nor scaled down
        only_mandatory = not spec.interventions and guard.action != "off"
        self._guard = replace(guard, action="warn") if only_mandatory else guard
        self._known: dict[Threshold, int] = {}
        self._thresholds: list[ResolvedThreshold] = []
        self._warnings: list[str] = []

    def plan(self) -> SteeringPlan:
        """Returns the whole plan. Raises InvalidRequest, DoseExceeded."""
        self._check_size()
        resolved = [self._intervention(item) for item in self._items]
        interventions, edits = [one for one, _ in resolved], [by_layer for _, by_layer in resolved]
        self._check_costly(edits)
        thresholds = tuple(self._thresholds)
        layers = EditBuilder(interventions, len(interventions) - self._mandatory, thresholds).layers(edits)
        if layers:
            own = len(interventions) - self._mandatory or None  # None: all, where everything is mandatory
            check_planned_dose(interventions[:own], edits[:own], self._info, self._guard, self._warnings.append)
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
        nodes = sum(1 for item in self._items if item.when is not None for _ in condition_nodes(item.when))
        if nodes > MAX_CONDITION_NODES:
            raise LimitExceeded(
                f"the conditions have {nodes} nodes together; at most {MAX_CONDITION_NODES} are allowed", param="when"
            )
        total = held = 0
        for item in self._items:
            vector, layers = self._place(item)
            total += len(layers) if vector is None else sum(_directions(item, vector.at(layer)) for layer in layers)
            if item.hold is not None:
                for field, message in _contradictions(item):
                    raise InvalidRequest(message, param=field)
                held += len(layers)
        if held > MAX_HOLDS:
            raise LimitExceeded(
                f"{held} strengths are held, counted over the layers; at most {MAX_HOLDS} are allowed", param="hold"
            )
        if total > MAX_LAYER_ACTIONS:
            raise LimitExceeded(
                f"the interventions act {total} times, counted over their layers and the rank of maps; at most "
                f"{MAX_LAYER_ACTIONS} are allowed; name fewer layers, or combine vectors into one",
                param="steering",
            )

    def _check_costly(self, edits: Sequence[Mapping[int, tuple[Edit, ...]]]) -> None:
        """Bounds what is computed at every token. Raises LimitExceeded."""
        varying = [
            sum(not is_constant(edit, item) for edit in written)
            for item, by_layer in zip(self._items, edits, strict=True)
            for written in by_layer.values()
        ]
        costly = sum((count + 1) // 2 for count in varying)  # both bounds of a clamp are one, a map of rank 16 is eight
        if costly > MAX_CALLS:
            raise LimitExceeded(
                f"{costly} operations are computed at every token, counted over layers and by half the rank of maps; at most {MAX_CALLS} "
                "are allowed (unconditional adds in unit 'scale' or 'raw' do not count)",
                param="steering",
            )

    def _intervention(self, item: InterventionSpec) -> tuple[Intervention, dict[int, tuple[Edit, ...]]]:
        """Returns an intervention, and its edits by layer."""
        operation = OPERATIONS[item.operation]
        _check_fields(item)
        vector, layers = self._place(item)
        points = points_of(layers, self._info, item.hook, item.head)
        other = None if item.other is None else self._found[item.other]
        _check_calibrated_unit(item, layers)
        condition = None if item.when is None else self._tree(item.when)
        self._check_order(item, points[0], condition)
        names = {name: found.id for name, found in self._found.items()}
        if vector is None:  # the ablation of an attention head
            mark = torch.zeros(self._info.d_model)
            mark[item.head] = 1.0
            removal = Edit(mark, weight=item.strength, kind="head")
            spec = renamed(item, names, layers=layers)
            return Intervention(spec, "", "", layers, condition), dict.fromkeys(points, (removal,))
        if item.share_dose and item.hook != "residual":
            raise InvalidRequest(f"'share_dose' is of hook 'residual', got hook {item.hook!r}", param="share_dose")
        strengths = shared_strengths(item, vector, layers, self._info.typical_norms) if item.share_dose else {}
        entries = {layer: _at_hook(vector.at(layer), item.hook) for layer in layers}
        others = {} if other is None else {layer: _at_hook(other.at(layer), item.hook) for layer in layers}
        edits: dict[int, tuple[Edit, ...]] = {}
        for point, layer in zip(points, layers, strict=True):
            here = item.model_copy(update={"strength": strengths[layer]}) if strengths else item
            edits[point] = operation.edits(here, entries[layer], others.get(layer))
        norms = dict(enumerate(self._info.typical_norms))  # of residuals
        planned = {
            layer: planned_dose(edits[point], norms.get(point)) for point, layer in zip(points, layers, strict=True)
        }
        spec = renamed(item, names, layers=layers)
        self._warnings += operation.warnings(spec, entries, others)
        hold = item.hold
        intervention = Intervention(
            spec=spec,
            namespace=vector.namespace,
            sha256=vector.sha256,
            layers=layers,
            strengths=strengths,
            condition=condition,
            planned_dose={layer: dose for layer, dose in planned.items() if dose is not None},
            holds={
                point: ResolvedHold(**hold.model_dump(), limit=item.strength, middle=entry.middle, scale=entry.scale)
                for point, entry in zip(points, entries.values(), strict=True)
                if hold is not None
            },
        )
        return intervention, edits

    def _place(self, item: InterventionSpec) -> tuple[ConceptVector | None, tuple[int, ...]]:
        """Returns the vector of an intervention, which the ablation of a head does not have, and the layers where it acts."""
        if item.head is None:
            vector = self._found[item.vector]
            return vector, resolve_layers(item.layers, vector, self._info.layer_count)
        layers, count = item.layers, self._info.layer_count
        if isinstance(layers, LayerRange):
            return None, _range_of(layers, count)
        assert layers != "recommended", "an InterventionSpec with a head names its layers"
        return None, layer_indices(layers, count)

    def _tree(self, condition: ConditionSpec) -> ConditionTree:
        """Returns the tree of a condition; equal thresholds are tested once."""
        if isinstance(condition, Threshold):
            if condition not in self._known:
                self._known[condition] = len(self._thresholds)
                self._thresholds.append(self._threshold(condition))
            return ConditionTree("threshold", self._known[condition])
        return ConditionTree(condition_kind(condition), children=tuple(map(self._tree, children_of(condition))))

    def _threshold(self, spec: Threshold) -> ResolvedThreshold:
        """Raises InvalidRequest for a layer or a measurement that the vector does not have."""
        vector = self._found[spec.vector]
        wanted: Layers = "recommended" if spec.layer is None else (spec.layer,)
        layer = resolve_layers(wanted, vector, self._info.layer_count)[0]
        entry = vector.at(layer)
        values = {name: getattr(entry, name) for name in CONDITIONS[spec.score].parameters}
        if missing := [name for name, value in values.items() if value is None]:
            raise InvalidRequest(
                f"condition score {spec.score!r} needs {' and '.join(missing)}, which vector {vector.id} does not have "
                f"at layer {layer} (it was made by method {vector.method!r})",
                param="when",
            )
        bound = spec.above if spec.above is not None else spec.below
        assert bound is not None, "Threshold has exactly one bound"
        return ResolvedThreshold(
            vector=vector.id,
            score=spec.score,
            layer=layer,
            direction=entry.direction,
            parameters=tuple(float(value) for value in values.values()),
            above=spec.above is not None,
            bound=float(bound),
            until=spec.until,
            at=spec.at,
        )

    def _check_order(self, item: InterventionSpec, first: int, condition: ConditionTree | None) -> None:
        """Refuses a condition that is read too late for the scope. A condition read at a later layer than the action
        takes effect one token later. Prompt positions are computed together, so they cannot wait for it."""
        phases = SCOPE_PHASES[item.scope.tokens]
        for leaf in () if condition is None else condition.leaves():
            threshold = self._thresholds[leaf]
            before_end = Phase.PROMPT in phases and threshold.at == "token"
            if in_order(threshold.layer) > in_order(first) and (before_end or Phase.GENERATED not in phases):
                latest = layer_of(first) - (
                    item.hook != "residual"
                )  # a block's own residual comes after what is inside it
                raise InvalidRequest(
                    f"the condition reads layer {threshold.layer}, later than {item.hook} of layer {layer_of(first)} where the "
                    f"intervention acts. It takes effect one token later, which scope {item.scope.tokens!r} does not "
                    f"allow; use scope 'generated' or a condition layer up to {latest}",
                    param="when",
                )


def _directions(item: InterventionSpec, entry: LayerDirection) -> int:
    """Returns how many directions an intervention has at a layer: as many as the rank of the map that it applies, else one."""
    return entry.map.rank if item.operation == "apply" and entry.map is not None else 1


def _check_calibrated_unit(item: InterventionSpec, layers: Sequence[int]) -> None:
    """Raises InvalidRequest for unit `kl` where it was not calibrated: it is of a plain add at one layer."""
    if item.unit != "kl":
        return
    if item.operation != "add" or item.strength_from is not None or item.hold is not None or item.hook != "residual":
        raise InvalidRequest(
            "unit 'kl' is of operation 'add' of the residual, without 'strength_from' and 'hold'", param="unit"
        )
    if len(layers) != 1:
        raise InvalidRequest(
            f"unit 'kl' is of one layer, got layers {list(layers)}: changes at several layers add up", param="layers"
        )


def _at_hook(entry: LayerDirection, hook: Hook) -> LayerDirection:
    """Returns a direction as it is used at a hook point: class means are those of the residual."""
    return entry if hook == "residual" else replace(entry, positive_mean=None, negative_mean=None)


def _check_fields(item: InterventionSpec) -> None:
    """Refuses a field that the operation does not use: it was meant to do something. Also one that is missing."""
    operation = OPERATIONS[item.operation]
    known = frozenset().union(*(entry.fields for entry in OPERATIONS.values()))
    written = {name for name in known if getattr(item, name) is not None}
    if unused := sorted(written - operation.fields):
        raise InvalidRequest(f"operation {item.operation!r} takes no {', '.join(unused)}", param=unused[0])
    if missing := sorted(operation.required - written):
        raise InvalidRequest(f"operation {item.operation!r} needs {', '.join(missing)}", param=missing[0])


def _contradictions(item: InterventionSpec) -> Iterator[tuple[str, str]]:
    """Yields what in an intervention contradicts `hold`, as (field, message)."""
    if item.scope.tokens != "generated":
        message = "'hold' follows the tokens as they are generated and needs scope 'generated', got"
        yield "scope", f"{message} {item.scope.tokens!r}"
    if item.scope.token_ids is not None or item.scope.roles is not None:
        yield "scope", "'hold' follows every generated token and takes no token_ids or roles"
    if item.unit != "scale":
        yield "unit", f"'hold' is on the axis of unit 'scale', got unit {item.unit!r}"
    if item.schedule.kind != "constant":
        message = "'hold' sets the strength at each token and takes no schedule, got"
        yield "schedule", f"{message} {item.schedule.kind!r}"
    if item.strength_from is not None:
        yield "strength_from", "'hold' sets the strength at each token and takes no 'strength_from'"
    if item.share_dose:
        yield "share_dose", "'hold' sets the strength of each layer and takes no 'share_dose'"
    if not item.strength > 0.0:
        message = "with 'hold', strength is the largest that may be used in either direction and must be above 0, got"
        yield "strength", f"{message} {item.strength:g}"


def carries(plan: SteeringPlan, policy: SteeringPlan) -> bool:
    """Whether a plan ends with exactly the interventions of a policy. policy: a plan of mandatory interventions alone."""
    own, wanted = (
        [(one.spec, one.sha256) for one in interventions]
        for interventions in (plan.interventions[plan.own :], policy.interventions)
    )
    return own == wanted


def under(plan: SteeringPlan, policy: SteeringPlan, model: str) -> SteeringPlan:
    """Returns a plan whose own interventions are followed by those of a policy. model: the fingerprint of the model."""
    if not plan.own:
        return replace(policy, prompt_roles=plan.prompt_roles, phases=plan.phases)
    # a policy that the plan was resolved under loses its thresholds with its interventions: those of the own ones come first
    conditions = [one.condition for one in plan.interventions[: plan.own] if one.condition is not None]
    first = 1 + max((leaf for condition in conditions for leaf in condition.leaves()), default=-1)
    moved = [replace(one, condition=one.condition and one.condition.moved(first)) for one in policy.interventions]
    layers = {
        layer: (
            *(edits for edits in plan.layers.get(layer, ()) if not edits.mandatory),
            *(
                replace(edits, interventions=tuple(index + plan.own for index in edits.interventions))
                for edits in policy.layers.get(layer, ())
            ),
        )
        for layer in sorted({*plan.layers, *policy.layers}, key=in_order)
    }
    joined = replace(
        plan,
        interventions=(*plan.interventions[: plan.own], *moved),
        layers={layer: edits for layer, edits in layers.items() if edits},
        thresholds=(*plan.thresholds[:first], *policy.thresholds),
        mandatory=len(moved),
    )
    return fingerprinted(joined, model)
