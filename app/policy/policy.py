"""Policy: what an operator enforces on all traffic, resolved for the loaded model and held in memory."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import structlog
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from app.errors import PolicyInvalid
from app.policy.changes import Changes
from app.policy.vector_sources import HeldVectors, by_id, find_vectors
from steering.engine.api import Engine
from steering.engine.capabilities import check_reads_monitors
from steering.engine.readings import EDGES, NO_MONITORS, Monitor, MonitorSet, ScoreStatistics
from steering.errors import NotReady, SteeringError, StoreCorrupt, Unavailable
from steering.model.info import ModelInfo
from steering.plan.dose import DoseGuard
from steering.plan.layers import resolve_layers
from steering.plan.resolve import Mandatory, RecentPlans
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.governance import NO_POLICY, MonitorSpec, PolicySpec
from steering.spec import Layers, SteeringSpec, vector_names
from steering.store.base import Store
from steering.vectors import ConceptVector
from steering.workflows.reading.explain import NeutralCache
from steering.workflows.reading.readout import reading_at

log = structlog.get_logger(__name__)

DOCUMENT = "policy"
"""Its name among the documents of the store."""
_REPAIR = "set it again with PUT /v1/policy, or remove it with DELETE /v1/policy"


@dataclass(frozen=True, slots=True, eq=False)
class ActivePolicy:
    """A policy whose vectors are pinned and held, by id.

    monitors: with what they have measured so far. unsteered: the plan of a pass that asks for no steering, which is what is mandatory.
    neutral: scores of neutral text, which depend on that plan.
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
