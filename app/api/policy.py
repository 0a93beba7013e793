"""What holds for traffic whatever a request says: the policy, the default steering, and the engine that puts every pass under the policy.

Both are resolved when they are set, at start, and when another server has changed them. Requests never read them from the
database, and a database that fails leaves the last ones in use. /v1/policy and /v1/monitors set the policy and show what its
monitors measured.
"""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeAlias

import structlog
from cachetools import LRUCache
from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from app.api.limits import RequestLimits, find_vectors, storable
from app.core.admission import check_limit
from app.core.errors import MonitorNotFound, PolicyInvalid
from app.core.requests import ApiRoute, StateDep, needs
from app.core.settings import Settings
from app.core.state import ServerState
from app.core.synchronization import Changes
from app.core.telemetry import current_request_id
from steering.engine import api
from steering.engine.api import Engine, GenerationRequest, TokenEvent
from steering.engine.capabilities import check_reads_monitors
from steering.errors import NotReady, SteeringError, StoreCorrupt, Unavailable, VectorNotFound
from steering.injection.readings import EDGES, NO_MONITORS, Monitor, MonitorSet
from steering.model.info import ModelInfo
from steering.namespaces import SHARED, visible_from
from steering.plan.resolve import Mandatory, RecentPlans, carries, plan_cache, resolve_layers, under
from steering.plan.types import UNSTEERED, DoseGuard, SteeringPlan
from steering.schemas import governance as schemas
from steering.schemas.governance import NO_POLICY, MonitorSpec, PolicyAnswer, PolicySpec
from steering.spec import SteeringSpec, vector_names
from steering.store.store import NamespaceStore, Store
from steering.store.vectors import Vectors
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId, VectorsByName
from steering.workflows.readout import NeutralCache, reading_at

log = structlog.get_logger(__name__)

DOCUMENT = "policy"
"""Its name among the documents of the store."""
_BY_INTERVENTION = ("doses", "fired", "fired_at", "tokens", "condition_scores", "held")
"""Fields of a SteeringReport that have an entry for each intervention."""

router = APIRouter(route_class=ApiRoute, tags=["policy"])
ADMIN = needs("admin")


@dataclass(frozen=True, slots=True, eq=False)
class ActivePolicy:
    """A policy whose vectors are pinned.
    monitors: the monitors with what they have measured so far.
    unsteered: the plan of a pass that asks for no steering. It has the mandatory interventions alone.
    neutral: the scores of neutral text, which depend on that plan."""

    spec: PolicySpec = NO_POLICY
    monitors: MonitorSet = NO_MONITORS
    mandatory: Mandatory = field(default_factory=Mandatory)
    unsteered: SteeringPlan = UNSTEERED
    neutral: NeutralCache = field(default_factory=NeutralCache)


class Policy(Collector):
    """Holds the policy. A stored policy that cannot be applied (it is damaged, its vectors are gone or belong to
    another model) refuses the requests that it should govern, because what must hold for all traffic must not be
    dropped silently."""

    def __init__(self, settings: Settings, plans: RecentPlans) -> None:
        self._guard = RequestLimits().guard(settings)
        self._plans = plans
        self._active = ActivePolicy()
        self._failure: SteeringError | None = NotReady("the policy has not been read yet")
        self._content: Mapping[str, Any] | None = None
        self._changes = Changes()

    @property
    def active(self) -> ActivePolicy:
        """The policy of every request. Raises PolicyInvalid, or NotReady before it was read."""
        if self._failure is not None:
            raise self._failure
        return self._active

    async def refresh(self, store: Store, engine: Engine) -> None:
        """Reads the stored policy and resolves it if it has changed. Raises Unavailable; the last one stays in use."""
        content, policy = await self._changes.read(lambda: self._read(store, engine))
        if not isinstance(policy, PolicyInvalid):
            self._use(policy, content)
            return
        if str(policy) != str(self._failure):
            log.error("policy_invalid", reason=policy.message)
        self._failure = policy

    async def _read(
        self, store: Store, engine: Engine
    ) -> tuple[Mapping[str, Any] | None, ActivePolicy | PolicyInvalid]:
        """Returns what is stored, and the policy or why it cannot be applied. Raises Unavailable."""
        content: Mapping[str, Any] | None = None
        try:
            content = await store.documents.get(DOCUMENT)
            if self._failure is None and content == self._content:
                return content, self._active
            return content, await self.resolve(_parsed(content), store, engine)
        except Unavailable:
            raise
        except SteeringError as error:
            repair = "set it again with PUT /v1/policy, or remove it with DELETE /v1/policy"
            return content, PolicyInvalid(f"the stored policy cannot be applied: {error.message}; {repair}")

    def _use(self, policy: ActivePolicy, content: Mapping[str, Any] | None) -> None:
        self._active, self._content, self._failure = policy, content, None

    async def put(self, policy: ActivePolicy, store: Store) -> None:
        """Stores a resolved policy and uses it from now on; an empty one is removed. Raises VectorNotFound."""
        content = None if policy.spec == NO_POLICY else policy.spec.model_dump(mode="json", exclude_unset=True)
        async with self._changes.change():
            await store.documents.put(DOCUMENT, content)
            self._use(policy, content)

    async def resolve(self, spec: PolicySpec, store: Store, engine: Engine) -> ActivePolicy:
        """Resolves a policy for the loaded model with the vectors of `shared`. Raises as resolving steering does, and
        UnsupportedParameter."""
        if spec.monitors:
            check_reads_monitors(engine)
        found = await find_vectors(spec.vector_names(), store.shared.vectors, engine.info)
        pinned = spec.pinned({name: vector.id for name, vector in found.items()})
        held = {vector.id: vector for vector in found.values()}
        mandatory = Mandatory(pinned.steering, {name: held[name] for name in vector_names(pinned.steering)})
        plan = await self._plans.resolve(SteeringSpec(), VectorsByName(held), engine.info, self._guard, mandatory)
        monitors = [self._monitor(one, held[one.vector], engine.info) for one in pinned.monitors]
        return ActivePolicy(pinned, MonitorSet(monitors), mandatory, plan)

    def _monitor(self, spec: MonitorSpec, vector: ConceptVector, info: ModelInfo) -> Monitor:
        """Resolves a monitor. One whose scores mean the same as before keeps its statistics."""
        layers = resolve_layers("recommended" if spec.layer is None else (spec.layer,), vector, info.layer_count)
        bound = spec.above if spec.above is not None else spec.below
        assert bound is not None, "MonitorSpec has exactly one bound"
        monitor = Monitor(
            name=spec.name,
            vector=vector.id,
            sha256=vector.sha256,
            reading=reading_at(spec.name, vector, layers),
            above=spec.above is not None,
            bound=bound,
            at=spec.at,
            action=spec.action,
            phase=spec.phase,
        )
        known = {_measured(one): one.statistics for one in self._active.monitors.ordered}
        return replace(monitor, statistics=known.get(_measured(monitor), monitor.statistics))

    def collect(self) -> Iterator[Metric]:
        """Yields what the monitors measured, for Prometheus. Their names are labels: an admin chooses them, and a policy has few."""
        # the format has no sum and count of a histogram with negative values
        scores = HistogramMetricFamily("steering_monitor_score", "Scores of a monitor.", labels=["monitor"])
        counted = CounterMetricFamily("steering_monitor_scores", "Scores of a monitor, counted.", labels=["monitor"])
        labels, about = ["monitor", "action"], "Scores beyond the bound of a monitor."
        raised = CounterMetricFamily("steering_monitor_raised", about, labels=labels)
        about = "Answers in which a monitor was raised."
        answers = CounterMetricFamily("steering_monitor_answers", about, labels=labels)
        for one in self._active.monitors.ordered:
            counts = list(accumulate(one.statistics.buckets))
            buckets = list(zip((*map(str, EDGES), "+Inf"), counts, strict=True))
            scores.add_metric([one.name], buckets=buckets, sum_value=None)
            counted.add_metric([one.name], counts[-1])
            raised.add_metric([one.name, one.action], one.statistics.raised)
            answers.add_metric([one.name, one.action], one.statistics.answers)
        yield from (scores, counted, raised, answers)


def _parsed(content: Mapping[str, Any] | None) -> PolicySpec:
    try:
        return NO_POLICY if content is None else PolicySpec.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise StoreCorrupt(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _measured(monitor: Monitor) -> tuple[object, ...]:
    return monitor.name, monitor.vector, monitor.sha256, monitor.reading.layer, monitor.at, monitor.phase


GovernedPlans: TypeAlias = LRUCache[tuple[SteeringPlan, SteeringPlan], SteeringPlan]
"""(plan, what is mandatory) -> the plan under it."""


class GovernedEngine(Engine):
    """Puts every pass under the policy that holds when it begins, whoever asks for it and with whatever plan. A plan
    that does not end with what is mandatory now is followed by it: no steering at all becomes the mandatory steering,
    and a plan that was resolved under an earlier policy loses what was mandatory then. Every answer is read by the
    monitors. Both raise PolicyInvalid while the policy cannot be applied. A report is then of the plan's own
    interventions alone. Texts are read for `client`. What only some engines have (`unembed`, `fit`, their limits) is the engine's own: it returns
    nothing that the model predicts from a text that was not read by `capture`."""

    def __init__(self, engine: Engine, policy: Policy, client: str = "", plans: GovernedPlans | None = None) -> None:
        self._engine, self._policy, self._client = engine, policy, client
        self._plans: GovernedPlans = plan_cache() if plans is None else plans

    def of_client(self, client: str) -> "GovernedEngine":
        """Returns the same engine, whose texts are read in turns with those of other clients."""
        return GovernedEngine(self._engine, self._policy, client, self._plans)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def name(self) -> str:
        """See Engine.name."""
        return self._engine.name

    @property
    def info(self) -> ModelInfo:
        """See Engine.info."""
        return self._engine.info

    @property
    def tokenizer(self) -> api.Tokenizer:
        """See Engine.tokenizer."""
        return self._engine.tokenizer

    def stats(self) -> api.EngineStats:
        """See Engine.stats."""
        return self._engine.stats()

    async def close(self) -> None:
        """See Engine.close."""
        await self._engine.close()

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate."""
        policy = self._policy.active
        request_id = request.request_id or current_request_id()
        request = replace(request, monitors=policy.monitors, request_id=request_id)
        if carries(request.plan, policy.unsteered):
            return self._engine.generate(request)
        return self._governed(request, policy)

    async def _governed(self, request: GenerationRequest, policy: ActivePolicy) -> AsyncGenerator[TokenEvent, None]:
        plan = await self._under(request.plan, policy)
        async with aclosing(self._engine.generate(replace(request, plan=plan))) as events:
            async for event in events:
                if event.finish is None:
                    yield event
                else:
                    report = event.finish.steering  # of the plan's own interventions alone
                    own = {name: getattr(report, name)[: request.plan.own] for name in _BY_INTERVENTION}
                    yield replace(event, finish=replace(event.finish, steering=replace(report, **own)))

    async def capture(
        self, prompts: Sequence[api.CapturePrompt], spec: api.CaptureSpec, **options: Any
    ) -> tuple[api.Capture, ...]:
        """See Engine.capture."""
        policy = self._policy.active
        plans = {one.plan: await self._under(one.plan, policy) for one in prompts}
        governed = [one if plans[one.plan] is one.plan else replace(one, plan=plans[one.plan]) for one in prompts]
        spec = replace(spec, client=spec.client or self._client)
        return await self._engine.capture(governed, spec, **options)

    async def _under(self, plan: SteeringPlan, policy: ActivePolicy) -> SteeringPlan:
        if carries(plan, policy.unsteered):
            return plan
        key = (plan, policy.unsteered)
        known = self._plans.get(key)
        if known is None:  # hashes every direction, which takes longer than the event loop may stand still
            known = self._plans[key] = await run_in_thread(under, plan, policy.unsteered, self.info.fingerprint)
        return known


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedDefault:
    """A default with its plan and its vectors. One that cannot be resolved has a plan with a warning and without
    interventions.
    spec: the stored interventions, None where they cannot be read.
    plan: the plan under the server's dose guard, without the policy.
    source: where the names of `pinned` are looked up: in memory, by id.
    applied: whether it could be resolved. One that could not is tried again at each refresh."""

    spec: SteeringSpec | None = UNSTEERED.spec
    plan: SteeringPlan = UNSTEERED
    source: VectorsByName = field(default_factory=lambda: VectorsByName({}))
    applied: bool = True

    @property
    def pinned(self) -> SteeringSpec:
        """The interventions with the versions of their vectors; none where they cannot be resolved."""
        return self.plan.spec


@dataclass(frozen=True, slots=True)
class _Pinned:
    """Looks up what a default pins: the version that its namespace sees, else that of `shared`, which an own vector of the name hides from
    requests. No own vector takes the number of a pinned one."""

    vectors: Vectors

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorSource.get."""
        try:
            return await self.vectors.get(name, version)
        except VectorNotFound:
            if version is None:
                raise
            return await replace(self.vectors, namespace=SHARED).get(name, version)


class DefaultSteering:
    """Holds the resolved steering of requests that name none, by namespace. Before the first read such requests are
    refused. When it cannot be resolved (another model was loaded, its vector was deleted, its row is damaged) requests
    run unsteered with a warning, because one stored row must not stop all plain traffic."""

    def __init__(self, settings: Settings, plans: RecentPlans) -> None:
        self._guard = RequestLimits().guard(settings)
        self._plans = plans
        self._defaults: Mapping[str, ResolvedDefault | None] | None = None
        """By namespace; None before they were read. The value is None where the vectors of a default could not be read yet."""
        self._otherwise = ResolvedDefault()  # where neither the namespace nor `shared` has one
        self._changes = Changes()

    def resolved_in(self, namespace: str) -> ResolvedDefault:
        """Returns the default of a namespace, else that of `shared`. Raises NotReady before it was read."""
        defaults = self._read()
        default = next((defaults[name] for name in visible_from(namespace) if name in defaults), self._otherwise)
        if default is None:
            raise NotReady("the vectors of the default steering have not been read yet")
        return default

    @property
    def by_namespace(self) -> Mapping[str, ResolvedDefault]:
        """The defaults that are resolved. Raises NotReady before they were read."""
        return {namespace: one for namespace, one in self._read().items() if one is not None}

    def warnings_of(self, namespace: str, spec: SteeringSpec) -> tuple[str, ...] | None:
        """Returns the warnings of a stored default without the policy; None where it is not in use yet."""
        default = (self._defaults or {}).get(namespace)
        return default.plan.warnings if default is not None and default.spec == spec else None

    async def check_with(self, mandatory: Mandatory, info: ModelInfo) -> None:
        """Raises the reason why requests without steering could not run under a policy and a default together."""
        for default in self.by_namespace.values():
            try:
                await self._plans.resolve(default.pinned, default.source, info, DoseGuard(action="off"), mandatory)
            except SteeringError as error:
                error.message = f"together with the default steering: {error.message}"
                raise

    def _read(self) -> Mapping[str, ResolvedDefault | None]:
        if self._defaults is None:
            raise NotReady("the default steering has not been read yet")
        return self._defaults

    async def refresh(self, store: Store, engine: Engine) -> None:
        """Reads the stored defaults and resolves those that have changed. Raises Unavailable; the last ones stay in use."""
        found, failure = await self._changes.read(lambda: self._resolve_stored(store, engine))
        self._defaults, self._otherwise = found, ResolvedDefault()
        if failure is not None:
            raise failure

    async def _resolve_stored(
        self, store: Store, engine: Engine
    ) -> tuple[Mapping[str, ResolvedDefault | None], Unavailable | None]:
        """Returns the stored defaults, and why the vectors of one could not be read."""
        last, found = self._defaults or {}, dict[str, ResolvedDefault | None]()
        failure: Unavailable | None = None
        try:
            stored = await store.defaults()
        except SteeringError as error:
            # damaged: waiting does not repair the table
            if self._defaults is None and not isinstance(error, Unavailable):
                self._defaults, self._otherwise = {}, _not_applied(None, SHARED, error)
            raise
        for namespace, spec in stored.items():
            known = found[namespace] = last.get(namespace)
            if isinstance(spec, StoreCorrupt):  # the default of this namespace alone
                if known is None or known.spec is not None:
                    found[namespace] = _not_applied(None, namespace, spec)
            elif known is None or known.spec != spec or not known.applied:
                try:
                    found[namespace] = await self._resolve(spec, store.in_namespace(namespace), engine, known)
                except Unavailable as error:
                    failure = error  # the default of one namespace, which must not hold up the others
        return found, failure

    async def put(self, spec: SteeringSpec | None, store: NamespaceStore, engine: Engine) -> None:
        """Stores the default of a namespace, or removes it, and uses it from now on. Raises Unavailable; then nothing is stored."""
        async with self._changes.change():
            self._read()
            resolved = None if spec is None else await self._resolve(spec, store, engine)
            await store.profiles.set_default(spec)
            others = {name: one for name, one in self._read().items() if name != store.namespace}
            self._defaults = others if resolved is None else {**others, store.namespace: resolved}

    async def _resolve(
        self, spec: SteeringSpec, store: NamespaceStore, engine: Engine, known: ResolvedDefault | None = None
    ) -> ResolvedDefault:
        """Resolves a default. Raises Unavailable: a read that failed says nothing about the default, and is tried again.
        known: the last one; a reason for which it was not applied is not logged again."""
        try:
            found = await find_vectors(vector_names(spec), _Pinned(store.vectors), engine.info)
            held = {vector.id: vector for vector in found.values()}
            plan = await self._plans.resolve(spec, VectorsByName(held, store.vectors), engine.info, self._guard)
        except Unavailable:
            raise
        except SteeringError as error:
            return _not_applied(spec, store.namespace, error, known)
        return ResolvedDefault(spec, plan, VectorsByName(held))


def _not_applied(
    spec: SteeringSpec | None, namespace: str, reason: SteeringError, known: ResolvedDefault | None = None
) -> ResolvedDefault:
    warnings = (not_applied(reason),)
    if known is None or known.plan.warnings != warnings:
        log.warning("default_steering_invalid", namespace=namespace, code=reason.code, reason=reason.message)
    return ResolvedDefault(spec, replace(UNSTEERED, warnings=warnings), applied=False)


def not_applied(reason: SteeringError) -> str:
    """Returns the warning of requests whose default cannot be used."""
    return f"the default steering is not applied: {reason.message}"


@router.get("/v1/policy", openapi_extra=ADMIN, response_model_exclude_unset=True)
async def read(state: StateDep) -> PolicyAnswer:
    """Returns the policy. Without one everything in it is empty."""
    return _policy_answer(state[Policy].active.spec)


@router.put("/v1/policy", openapi_extra=ADMIN, response_model_exclude_unset=True)
async def put(body: PolicySpec, state: StateDep) -> PolicyAnswer:
    """Sets the policy of all traffic. It must be valid for the loaded model."""
    check_limit(len(body.mandatory), state.settings.max_interventions, "interventions", "mandatory")
    storable(body.mandatory, "mandatory")
    for name in body.limits.vectors or ():
        VectorId.parse(name, "limits.vectors")
    resolved = await state[Policy].resolve(body, state.store, state.engine)
    await state[DefaultSteering].check_with(resolved.mandatory, state.engine.info)
    await _set(state, resolved)
    answer = _policy_answer(resolved.spec)
    warnings = resolved.unsteered.warnings
    return answer.model_copy(update={"warnings": warnings}) if warnings else answer


@router.delete("/v1/policy", status_code=204, openapi_extra=ADMIN)
async def delete(state: StateDep) -> None:
    """Removes the policy, also one that cannot be applied."""
    await _set(state, ActivePolicy())


@router.get("/v1/monitors", openapi_extra=ADMIN)
async def monitors(state: StateDep) -> schemas.MonitorList:
    """Lists the monitors of the policy with their counts."""
    policy = state[Policy].active
    by_name = {one.name: schemas.MonitorAnswer(**_monitor_fields(one)) for one in policy.monitors.ordered}
    return schemas.MonitorList(data=[by_name[one.name] for one in policy.spec.monitors])


@router.get("/v1/monitors/{name}", openapi_extra=ADMIN)
async def monitor(name: str, state: StateDep) -> schemas.MonitorDetail:
    """Returns one monitor: counts, the distribution of its scores, the latest raises, the mean of each hour."""
    policy = state[Policy].active
    found = next((one for one in policy.monitors.ordered if one.name == name), None)
    if found is None:
        known = ", ".join(one.name for one in policy.spec.monitors) or "none"
        raise MonitorNotFound(f"there is no monitor {name[:80]!r}; the policy has {known}", param="name")
    measured = found.statistics
    latest, hours = reversed(list(measured.latest)), list(measured.hours)
    return schemas.MonitorDetail(
        **_monitor_fields(found),
        distribution=schemas.DistributionAnswer(edges=list(EDGES), counts=list(measured.buckets)),
        # pydantic reads Unix times as datetimes in UTC
        latest=[schemas.RaiseAnswer.model_validate(one, from_attributes=True) for one in latest],
        hours=[
            schemas.HourAnswer(start=one.start, scores=one.count, raised=one.raised, mean=one.total / max(one.count, 1))
            for one in hours
        ],
    )


async def _set(state: ServerState, policy: ActivePolicy) -> None:
    """Sets the policy, and reads what another server may have set at the same time: the one stored last holds everywhere."""
    await state[Policy].put(policy, state.store)
    with suppress(SteeringError):
        await state[Policy].refresh(state.store, state.engine)


def _policy_answer(spec: PolicySpec) -> PolicyAnswer:
    return PolicyAnswer(mandatory=spec.mandatory, monitors=spec.monitors, limits=spec.limits)


def _monitor_fields(monitor: Monitor) -> dict[str, Any]:
    measured, count = monitor.statistics, monitor.statistics.count
    return {
        **{name: getattr(monitor, name) for name in ("name", "vector", "at", "action", "phase")},
        "layer": monitor.reading.layer,
        "above": monitor.bound if monitor.above else None,
        "below": None if monitor.above else monitor.bound,
        "scores": count,
        "raised": measured.raised,
        "answers": measured.answers,
        "mean": measured.total / count if count else None,
        "lowest": measured.lowest if count else None,
        "highest": measured.highest if count else None,
    }
