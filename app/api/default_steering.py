"""DefaultSteering: the resolved steering of requests that name none, by namespace, kept in memory for the loaded model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog

from app.api.limits import RequestLimits
from app.api.vector_sources import HeldVectors, by_id, find_vectors
from app.core.settings import Settings
from app.core.synchronization import Changes
from steering.engine.api import Engine
from steering.errors import NotReady, SteeringError, StoreCorrupt, Unavailable
from steering.namespaces import SHARED, visible_from
from steering.plan.resolve import RecentPlans
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import SteeringSpec, pinned, vector_names
from steering.store.store import NamespaceStore, Store
from steering.vectors import ConceptVector, VectorId, VectorSource

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedDefault:
    """A default with its plan and its vectors. A default that cannot be resolved has a plan with a warning and without interventions.

    spec: the stored interventions, None where they cannot be read.
    plan: the plan under the server's dose guard, without the policy.
    vectors: the vectors of the plan by id.
    """

    spec: SteeringSpec | None = UNSTEERED.spec
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

    Requests never read it from the database, and a database that fails leaves the last one in use; before the first read they are
    refused. When it cannot be resolved (another model was loaded, its vector was deleted, its row is damaged) requests run
    unsteered with a warning, because one stored row must not stop all plain traffic.
    """

    def __init__(self, settings: Settings, plans: RecentPlans) -> None:
        self._guard = RequestLimits().guard(settings)
        self._plans = plans
        self._defaults: Mapping[str, ResolvedDefault | None] | None = None
        """By namespace; None before they were read. The value is None where the vectors of a default could not be read yet."""
        self._otherwise = ResolvedDefault()  # where neither the namespace nor `shared` has one
        self._changes = Changes()

    def resolved_in(self, namespace: str) -> ResolvedDefault:
        """Returns the default of requests without steering: that of their namespace, else that of `shared`. Raises NotReady before it
        was read."""
        defaults = self._read()
        found = next((defaults[one] for one in visible_from(namespace) if one in defaults), self._otherwise)
        if found is None:
            raise NotReady("the vectors of the default steering have not been read yet")
        return found

    @property
    def by_namespace(self) -> Mapping[str, ResolvedDefault]:
        """The defaults that are resolved. Raises NotReady before they were read."""
        return {namespace: one for namespace, one in self._read().items() if one is not None}

    def warnings_of(self, namespace: str, spec: SteeringSpec) -> tuple[str, ...]:
        """Returns the warnings that requests under a stored default get; none where it is not in use yet."""
        found = (self._defaults or {}).get(namespace)
        return found.plan.warnings if found is not None and found.spec == spec else ()

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
        for namespace, spec in (await self._stored(store)).items():
            known = found[namespace] = last.get(namespace)
            if isinstance(spec, StoreCorrupt):  # the default of this namespace alone
                if known is None or known.spec is not None:
                    found[namespace] = _not_applied(None, namespace, spec)
            elif known is None or known.spec != spec:
                try:
                    found[namespace] = await self._resolve(spec, store.in_namespace(namespace), engine)
                except Unavailable as error:
                    failure = error  # the default of one namespace, which must not hold up the others
        return found, failure

    async def _stored(self, store: Store) -> Mapping[str, SteeringSpec | StoreCorrupt]:
        try:
            return await store.defaults()
        except Unavailable:
            raise
        except SteeringError as error:
            if self._defaults is None:  # the table is damaged, which waiting does not mend
                self._defaults, self._otherwise = {}, _not_applied(None, SHARED, error)
            raise

    async def put(self, spec: SteeringSpec | None, store: NamespaceStore, engine: Engine) -> None:
        """Stores the default of a namespace, or removes it, and uses it from now on. Raises Unavailable; then nothing is stored."""
        async with self._changes.change():
            self._read()
            resolved = None if spec is None else await self._resolve(spec, store, engine)
            await store.profiles.set_default(spec)
            others = {name: one for name, one in self._read().items() if name != store.namespace}
            self._defaults = others if resolved is None else {**others, store.namespace: resolved}

    async def _resolve(self, spec: SteeringSpec, store: NamespaceStore, engine: Engine) -> ResolvedDefault:
        """Resolves a default. Raises Unavailable: a read that failed says nothing about the default, and is tried again."""
        try:
            held = by_id(await find_vectors(vector_names(spec), store.vectors, engine.info))
            plan = await self._plans.resolve(spec, HeldVectors(held, store.vectors), engine.info, self._guard)
        except Unavailable:
            raise
        except SteeringError as error:
            return _not_applied(spec, store.namespace, error)
        return ResolvedDefault(spec, plan, held)


def _not_applied(spec: SteeringSpec | None, namespace: str, reason: SteeringError) -> ResolvedDefault:
    log.warning("default_steering_invalid", namespace=namespace, code=reason.code, reason=reason.message)
    return ResolvedDefault(spec, replace(UNSTEERED, warnings=(not_applied(reason),)))


def not_applied(reason: SteeringError) -> str:
    """Returns the warning of requests whose default cannot be used."""
    return f"the default steering is not applied: {reason.message}"


async def pin(spec: SteeringSpec, store: NamespaceStore) -> SteeringSpec:
    """Returns the spec with every vector pinned to its version, so that a new version of a name changes nothing."""
    keys = {name: VectorId.parse(name) for name in vector_names(spec)}
    return pinned(spec, {name: (await store.vectors.get(key.name, key.version)).id for name, key in keys.items()})
