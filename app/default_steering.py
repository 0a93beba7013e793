"""DefaultSteering: the resolved steering of requests that name none, kept in memory for the loaded model."""

from dataclasses import dataclass, replace

import structlog

from app.settings import Settings
from steering.engine.api import Engine
from steering.errors import SteeringError
from steering.plan.dose import DoseGuard
from steering.plan.resolve import RecentPlans
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import SteeringSpec, pinned, vector_names
from steering.store.base import Store
from steering.vectors import VectorId

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A spec and its plan; a plan without interventions and with a warning where it cannot be resolved."""

    spec: SteeringSpec | None
    plan: SteeringPlan = UNSTEERED


class DefaultSteering:
    """Resolves the default steering when it is set, at start, and when another server has changed it.

    Requests never read it from the database. When it cannot be resolved (another model was loaded, its vector was deleted)
    requests run unsteered with a warning, because one stored row must not stop all plain traffic.
    """

    def __init__(self, settings: Settings, plans: RecentPlans) -> None:
        self._guard = DoseGuard(settings.dose_bound, settings.dose_action)
        self._plans = plans
        self._resolved = _Resolved(None)

    @property
    def plan(self) -> SteeringPlan:
        """The plan of requests without steering."""
        return self._resolved.plan

    async def refresh(self, store: Store, engine: Engine) -> None:
        """Reads the stored default and resolves it if it has changed. A store that fails leaves the last one in use."""
        try:
            spec = await store.profiles.default()
        except SteeringError as error:
            log.warning("default_steering_not_read", code=error.code)
            return
        if spec != self._resolved.spec:
            await self.use(spec, store, engine)

    async def use(self, spec: SteeringSpec | None, store: Store, engine: Engine) -> None:
        """Resolves a default and uses it from now on."""
        if spec is None:
            self._resolved = _Resolved(None)
            return
        try:
            plan = await self._plans.resolve(spec, store.vectors, engine.info, self._guard)
        except SteeringError as error:
            log.warning("default_steering_invalid", code=error.code, reason=error.message, param=error.param)
            warning = f"the default steering is not applied: {error.message}"
            plan = replace(UNSTEERED, warnings=(warning,))
        self._resolved = _Resolved(spec, plan)


async def pin(spec: SteeringSpec, store: Store) -> SteeringSpec:
    """Returns the spec with every vector pinned to its version, so that a new version of a name changes nothing."""
    names: dict[str, str] = {}
    for name in vector_names(spec):
        key = VectorId.parse(name)
        names[name] = (await store.vectors.get(key.name, key.version)).id
    return pinned(spec, names)
