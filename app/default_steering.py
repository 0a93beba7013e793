"""DefaultSteering: the resolved steering of requests that name none, by namespace, kept in memory for the loaded model."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog

from app.policy.vector_sources import HeldVectors, by_id, find_vectors
from app.settings import Settings
from steering.engine.api import Engine
from steering.errors import SteeringError
from steering.namespaces import visible_from
from steering.plan.dose import DoseGuard
from steering.plan.resolve import RecentPlans
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import SteeringSpec, pinned, vector_names
from steering.store.base import NamespaceStore, Store, VectorSource
from steering.vectors import ConceptVector, VectorId

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedDefault:
    """A default, its plan, and its vectors by id; a plan without interventions and with a warning where it cannot be resolved.

    plan: under the server's dose guard, without the policy.
    """

    spec: SteeringSpec = UNSTEERED.spec
    plan: SteeringPlan = UNSTEERED
    vectors: Mapping[str, ConceptVector] = field(default_factory=dict)

    @property
    def pinned(self) -> SteeringSpec:
        """The interventions with the versions of their vectors; none where they cannot be resolved."""
        return self.plan.spec

    @property
    def source(self) -> VectorSource:
        """Where the names of `pinned` are looked up: in memory."""
        return HeldVectors(self.vectors)


class DefaultSteering:
    """Resolves the default steering when it is set, at start, and when another server has changed it.

    Requests never read it from the database. When it cannot be resolved (another model was loaded, its vector was deleted)
    requests run unsteered with a warning, because one stored row must not stop all plain traffic.
    """

    def __init__(self, settings: Settings, plans: RecentPlans) -> None:
        self._guard = DoseGuard(settings.dose_bound, settings.dose_action)
        self._plans = plans
        self._resolved: dict[str, ResolvedDefault] = {}
        self._updating = asyncio.Lock()  # what a refresh has read must not replace what was put meanwhile

    def resolved_in(self, namespace: str) -> ResolvedDefault:
        """Returns the default of requests without steering: that of their namespace, else that of `shared`."""
        found = (self._resolved[one] for one in visible_from(namespace) if one in self._resolved)
        return next(found, ResolvedDefault())

    def all(self) -> tuple[ResolvedDefault, ...]:
        """Returns the defaults of all namespaces."""
        return tuple(self._resolved.values())

    async def refresh(self, store: Store, engine: Engine) -> None:
        """Reads the stored defaults and resolves those that have changed. A store that fails leaves the last ones in use."""
        async with self._updating:
            try:
                specs = await store.defaults()
            except SteeringError as error:
                log.warning("default_steering_not_read", code=error.code)
                return
            self._resolved = {namespace: one for namespace, one in self._resolved.items() if namespace in specs}
            for namespace, spec in specs.items():
                if namespace not in self._resolved or spec != self._resolved[namespace].spec:
                    await self._use(spec, store.in_namespace(namespace), engine)

    async def put(self, spec: SteeringSpec | None, store: NamespaceStore, engine: Engine) -> None:
        """Stores the default of a namespace, or removes it, and uses it from now on."""
        async with self._updating:
            await store.profiles.set_default(spec)
            if spec is None:
                self._resolved.pop(store.namespace, None)
            else:
                await self._use(spec, store, engine)

    async def _use(self, spec: SteeringSpec, store: NamespaceStore, engine: Engine) -> None:
        held: Mapping[str, ConceptVector] = {}
        try:
            held = by_id(await find_vectors(vector_names(spec), store.vectors, engine.info))
            plan = await self._plans.resolve(spec, HeldVectors(held, store.vectors), engine.info, self._guard)
        except SteeringError as error:
            log.warning("default_steering_invalid", namespace=store.namespace, code=error.code, reason=error.message)
            warning = f"the default steering is not applied: {error.message}"
            plan = replace(UNSTEERED, warnings=(warning,))
        self._resolved[store.namespace] = ResolvedDefault(spec, plan, held)


async def pin(spec: SteeringSpec, store: NamespaceStore) -> SteeringSpec:
    """Returns the spec with every vector pinned to its version, so that a new version of a name changes nothing."""
    keys = {name: VectorId.parse(name) for name in vector_names(spec)}
    return pinned(spec, {name: (await store.vectors.get(key.name, key.version)).id for name, key in keys.items()})
