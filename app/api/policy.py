"""Policy: what an operator enforces on all traffic, resolved for the loaded model and held in memory, and the engine under it. /v1/policy and
/v1/monitors: sets it, and shows what its monitors measured."""

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import structlog
from cachetools import LRUCache
from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from app.api.default_steering import DefaultSteering
from app.api.limits import check_stored
from app.api.vector_sources import HeldVectors, by_id, find_vectors
from app.core.admission import check_limit
from app.core.errors import MonitorNotFound, PolicyInvalid
from app.core.logs import current_request_id
from app.core.requests import ApiRoute, StateDep, needs
from app.core.state import ServerState
from app.core.synchronization import Changes
from steering.engine.api import (
    Capture,
    CapturePrompt,
    CaptureSpec,
    Engine,
    EngineStats,
    GenerationRequest,
    TokenEvent,
    Tokenizer,
)
from steering.engine.capabilities import check_reads_monitors
from steering.errors import NotReady, SteeringError, StoreCorrupt, Unavailable
from steering.injection.dose import SteeringReport
from steering.injection.readings import EDGES, NO_MONITORS, Monitor, MonitorSet, ScoreStatistics
from steering.model.info import ModelInfo
from steering.plan.dose import DoseGuard
from steering.plan.layers import resolve_layers
from steering.plan.resolve import Mandatory, RecentPlans, carries, under
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.governance import (
    NO_POLICY,
    DistributionAnswer,
    HourAnswer,
    MonitorAnswer,
    MonitorDetail,
    MonitorList,
    MonitorSpec,
    PolicyAnswer,
    PolicySpec,
    RaiseAnswer,
)
from steering.spec import Layers, SteeringSpec, vector_names
from steering.store.store import Store
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId
from steering.workflows.explain import NeutralCache
from steering.workflows.readout import reading_at

log = structlog.get_logger(__name__)

DOCUMENT = "policy"
"""Its name among the documents of the store."""
_REPAIR = "set it again with PUT /v1/policy, or remove it with DELETE /v1/policy"
RECENT_PLANS = 64
"""Plans whose form under the policy is kept."""

router = APIRouter(route_class=ApiRoute, tags=["policy"])


@dataclass(frozen=True, slots=True, eq=False)
class ActivePolicy:
    """A policy whose vectors are pinned and held, by id.

    monitors: the monitors with what they have measured so far.
    unsteered: the plan of a pass that asks for no steering. It has the mandatory interventions alone.
    neutral: the scores of neutral text, which depend on that plan.
    """

    spec: PolicySpec = NO_POLICY
    vectors: Mapping[str, ConceptVector] = field(default_factory=dict)
    monitors: MonitorSet = NO_MONITORS
    mandatory: Mandatory = field(default_factory=Mandatory)
    unsteered: SteeringPlan = UNSTEERED
    neutral: NeutralCache = field(default_factory=NeutralCache)


class Policy(Collector):
    """Resolves the policy when it is set, at start, and when another server has changed it.

    Requests never read it from the database, and a database that fails leaves the last one in use. A stored policy that
    cannot be applied (it is damaged, its vectors are gone or belong to another model) refuses the requests that it should
    govern, because what must hold for all traffic must not be dropped silently.
    """

    def __init__(self, plans: RecentPlans) -> None:
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
        content, found = await self._changes.read(lambda: self._read(store, engine))
        if isinstance(found, PolicyInvalid):
            self._fail(found)
        else:
            self._use(found, content)

    async def _read(
        self, store: Store, engine: Engine
    ) -> tuple[Mapping[str, Any] | None, ActivePolicy | PolicyInvalid]:
        """Returns what is stored, and the policy or why it cannot be applied. Raises Unavailable."""
        content: Mapping[str, Any] | None = None
        try:
            content = await store.documents.get(DOCUMENT)
            if self._failure is None and content == self._content:
                return content, self._active
            return content, await self._stored(content, store, engine)
        except Unavailable:
            raise
        except SteeringError as error:
            reason = f"the stored policy cannot be applied: {error.message}; {_REPAIR}"
            return content, PolicyInvalid(reason)

    async def _stored(self, content: Mapping[str, Any] | None, store: Store, engine: Engine) -> ActivePolicy:
        try:
            spec = NO_POLICY if content is None else PolicySpec.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise StoreCorrupt(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return await self.resolve(spec, store, engine)

    def _fail(self, failure: PolicyInvalid) -> None:
        if str(failure) != str(self._failure):
            log.error("policy_invalid", reason=failure.message)
        self._failure = failure

    def _use(self, policy: ActivePolicy, content: Mapping[str, Any] | None) -> None:
        self._active, self._content, self._failure = policy, content, None

    async def put(self, policy: ActivePolicy, store: Store) -> None:
        """Stores a resolved policy and uses it from now on; one that says nothing is removed. Raises VectorNotFound."""
        content = policy.spec.model_dump(mode="json", exclude_unset=True)
        stored = None if policy.spec == NO_POLICY else content
        async with self._changes.change():
            await store.documents.put(DOCUMENT, stored)
            self._use(policy, stored)

    async def resolve(self, spec: PolicySpec, store: Store, engine: Engine) -> ActivePolicy:
        """Resolves a policy for the loaded model, with the vectors of `shared`. Raises what resolving steering raises, and
        UnsupportedParameter."""
        if spec.monitors:
            check_reads_monitors(engine)
        found = await find_vectors(spec.vector_names(), store.shared.vectors, engine.info)
        pinned = spec.pinned({name: vector.id for name, vector in found.items()})
        held = by_id(found)
        mandatory = Mandatory(pinned.steering, {name: held[name] for name in vector_names(pinned.steering)})
        plan = await self._plans.resolve(SteeringSpec(), HeldVectors(held), engine.info, DoseGuard(), mandatory)
        monitors = [self._monitor(one, held[one.vector], engine.info) for one in pinned.monitors]
        return ActivePolicy(pinned, held, MonitorSet(monitors), mandatory, plan)

    def _monitor(self, spec: MonitorSpec, vector: ConceptVector, info: ModelInfo) -> Monitor:
        """Resolves a monitor. One whose scores mean the same as before keeps its statistics."""
        wanted: Layers = "recommended" if spec.layer is None else (spec.layer,)
        reading = reading_at(spec.name, vector, resolve_layers(wanted, vector, info.layer_count))
        bound = spec.above if spec.above is not None else spec.below
        assert bound is not None, "MonitorSpec has exactly one bound"
        key = (spec.name, vector.id, vector.sha256, reading.layer, spec.at)
        return Monitor(
            name=spec.name,
            vector=vector.id,
            sha256=vector.sha256,
            reading=reading,
            above=spec.above is not None,
            bound=bound,
            at=spec.at,
            action=spec.action,
            statistics=self._statistics().get(key) or ScoreStatistics(),
        )

    def _statistics(self) -> dict[tuple[str, str, str, int, str], ScoreStatistics]:
        monitors = self._active.monitors.ordered
        return {(one.name, one.vector, one.sha256, one.reading.layer, one.at): one.statistics for one in monitors}

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


class GovernedEngine(Engine):
    """Puts every pass under the policy that holds when it begins, whoever asks for it and with whatever plan.

    A plan that does not end with what is mandatory now is followed by it: no steering at all becomes the mandatory steering, and a
    plan that was resolved under an earlier policy loses what was mandatory then. Every answer is read by the monitors. Both raise
    PolicyInvalid while the policy cannot be applied. A report is then of the plan's own interventions alone.

    What only some engines have (`unembed`, `fit`, their limits) is the engine's own: it returns nothing that the model predicts from a text
    that was not read by `capture`.
    """

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self._engine, self._policy = engine, policy
        self._plans: LRUCache[tuple[SteeringPlan, SteeringPlan], SteeringPlan] = LRUCache(RECENT_PLANS)

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
    def tokenizer(self) -> Tokenizer:
        """See Engine.tokenizer."""
        return self._engine.tokenizer

    def stats(self) -> EngineStats:
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
                    report = _as_asked(event.finish.steering, request.plan)
                    yield replace(event, finish=replace(event.finish, steering=report))

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """See Engine.capture."""
        policy = self._policy.active
        plans = {one.plan: await self._under(one.plan, policy) for one in prompts}
        governed = [one if plans[one.plan] is one.plan else replace(one, plan=plans[one.plan]) for one in prompts]
        return await self._engine.capture(governed, spec, progress=progress, priority=priority)

    async def _under(self, plan: SteeringPlan, policy: ActivePolicy) -> SteeringPlan:
        if carries(plan, policy.unsteered):
            return plan
        key = (plan, policy.unsteered)
        known = self._plans.get(key)
        if known is None:  # hashes every direction, which takes longer than the event loop may stand still
            known = self._plans[key] = await run_in_thread(under, plan, policy.unsteered, self.info.fingerprint)
        return known


def _as_asked(report: SteeringReport, plan: SteeringPlan) -> SteeringReport:
    """Returns a report of a plan's own interventions alone."""
    names = ("doses", "fired", "fired_at", "tokens", "condition_scores", "held")
    return replace(report, **{name: getattr(report, name)[: plan.own] for name in names})


@router.get("/v1/policy", openapi_extra=needs("admin"), response_model_exclude_unset=True)
async def read(state: StateDep) -> PolicyAnswer:
    """Returns the policy. Without one everything in it is empty."""
    return _policy_answer(state[Policy].active.spec)


@router.put("/v1/policy", openapi_extra=needs("admin"), response_model_exclude_unset=True)
async def put(body: PolicySpec, state: StateDep) -> PolicyAnswer:
    """Sets the policy of all traffic. It must be valid for the loaded model."""
    check_limit(len(body.mandatory), state.settings.max_interventions, "interventions", "steering")
    check_stored(body.mandatory)
    for name in body.limits.vectors or ():
        VectorId.parse(name, "limits.vectors")
    resolved = await state[Policy].resolve(body, state.store, state.engine)
    await _check_with_defaults(state, resolved.mandatory)
    await _set(state, resolved)
    return _policy_answer(resolved.spec)


@router.delete("/v1/policy", status_code=204, openapi_extra=needs("admin"))
async def delete(state: StateDep) -> None:
    """Removes the policy, also one that cannot be applied."""
    await _set(state, ActivePolicy())


@router.get("/v1/monitors", openapi_extra=needs("admin"))
async def monitors(state: StateDep) -> MonitorList:
    """Lists the monitors of the policy with their counts."""
    by_name = {one.name: one for one in state[Policy].active.monitors.ordered}
    return MonitorList(
        data=[MonitorAnswer(**_monitor_fields(by_name[one.name])) for one in state[Policy].active.spec.monitors]
    )


@router.get("/v1/monitors/{name}", openapi_extra=needs("admin"))
async def monitor(name: str, state: StateDep) -> MonitorDetail:
    """Returns one monitor: counts, the distribution of its scores, the latest raises, the mean of each hour."""
    found = next((one for one in state[Policy].active.monitors.ordered if one.name == name), None)
    if found is None:
        known = ", ".join(one.name for one in state[Policy].active.spec.monitors) or "none"
        raise MonitorNotFound(f"there is no monitor {name[:80]!r}; the policy has {known}", param="name")
    statistics = found.statistics
    return MonitorDetail(
        **_monitor_fields(found),
        distribution=DistributionAnswer(edges=list(EDGES), counts=list(statistics.buckets)),
        # pydantic reads Unix times as datetimes in UTC
        latest=[RaiseAnswer.model_validate(one, from_attributes=True) for one in reversed(list(statistics.latest))],
        hours=[
            HourAnswer(start=one.start, scores=one.count, raised=one.raised, mean=one.total / max(one.count, 1))
            for one in list(statistics.hours)
        ],
    )


async def _set(state: ServerState, policy: ActivePolicy) -> None:
    """Sets the policy, and reads what another server may have set at the same time: the one stored last holds everywhere."""
    await state[Policy].put(policy, state.store)
    with suppress(SteeringError):
        await state[Policy].refresh(state.store, state.engine)


async def _check_with_defaults(state: ServerState, mandatory: Mandatory) -> None:
    """Raises the reason why requests without steering could not run under the policy and a default together."""
    plans, info = state.plans, state.engine.info
    for default in state[DefaultSteering].by_namespace.values():
        try:
            await plans.resolve(default.pinned, default.source, info, DoseGuard(action="off"), mandatory)
        except SteeringError as error:
            error.message = f"together with the default steering: {error.message}"
            raise


def _policy_answer(spec: PolicySpec) -> PolicyAnswer:
    """Describes a policy."""
    return PolicyAnswer(mandatory=spec.mandatory, monitors=spec.monitors, limits=spec.limits)


def _monitor_fields(monitor: Monitor) -> dict[str, Any]:
    statistics, count = monitor.statistics, monitor.statistics.count
    return {
        "name": monitor.name,
        "vector": monitor.vector,
        "layer": monitor.reading.layer,
        "above": monitor.bound if monitor.above else None,
        "below": None if monitor.above else monitor.bound,
        "at": monitor.at,
        "action": monitor.action,
        "scores": count,
        "raised": statistics.raised,
        "answers": statistics.answers,
        "mean": statistics.total / count if count else None,
        "lowest": statistics.lowest if count else None,
        "highest": statistics.highest if count else None,
    }
