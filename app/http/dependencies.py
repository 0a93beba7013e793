"""What handlers ask for: engine, store, jobs, permits; and names at the door turned into things or refused."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from app.http.admission import Admission
from app.http.authentication import Key
from app.services.jobs import Jobs
from app.state import AppState, state_of
from steering.engine.api import Engine, Reading
from steering.errors import InvalidRequest, LimitExceeded
from steering.plan.dose import DoseGuard
from steering.plan.layers import check_model
from steering.plan.types import SteeringPlan
from steering.schemas.steering import ProfileSteering, Steering
from steering.spec import InterventionSpec, SteeringSpec
from steering.store.base import Store
from steering.vectors import ConceptVector, VectorId


async def _state(request: Request) -> AppState:
    """A coroutine, because FastAPI calls a plain function in a thread, which every request would wait for."""
    return state_of(request)


StateDep = Annotated[AppState, Depends(_state)]


async def _engine(state: StateDep) -> Engine:
    return state.engine


async def _store(state: StateDep) -> Store:
    return state.store


async def _jobs(state: StateDep) -> Jobs:
    return state.jobs


async def _lease(request: Request) -> Admission:
    """One row at once, or Overloaded; the outermost wrapper gives everything back when the answer has been sent."""
    lease: Admission = request.state.lease
    lease.take(1)
    return lease


async def _salt(request: Request) -> str:
    """Prompts are shared in the prefix cache within one key: `cached_tokens` would tell others what they begin with."""
    key: Key = request.state.key
    return key.name


EngineDep = Annotated[Engine, Depends(_engine)]
StoreDep = Annotated[Store, Depends(_store)]
JobsDep = Annotated[Jobs, Depends(_jobs)]
LeaseDep = Annotated[Admission, Depends(_lease)]
SaltDep = Annotated[str, Depends(_salt)]


async def vector_named(store: Store, text: str, param: str = "vector") -> ConceptVector:
    """`name` or `name@3`. Raises VectorNotFound, InvalidRequest for what is no name."""
    key = VectorId.parse(text, param)
    return await store.vectors.get(key.name, key.version)


async def vector_at(store: Store, text: str, version: int | None) -> ConceptVector:
    """`name@3`, or a name and `?version=3`; both is one too many."""
    key = VectorId.parse(text, "name")
    if key.version is not None and version is not None:
        raise InvalidRequest("give the version once: in the name or as ?version=", param="version")
    return await store.vectors.get(key.name, version if key.version is None else key.version)


async def spec_of(state: AppState, steering: Steering | None) -> SteeringSpec:
    """What a request's `steering` means: absent is the server default, a profile's interventions come before its own."""
    if steering is None:
        return await state.store.profiles.default() or SteeringSpec()
    interventions: Sequence[InterventionSpec]
    if isinstance(steering, ProfileSteering):
        profile = await state.store.profiles.get(steering.profile)
        interventions = (*profile.steering.interventions, *steering.interventions)
    else:
        interventions = steering
    limit = state.settings.max_interventions
    if len(interventions) > limit:
        raise LimitExceeded(f"{len(interventions)} interventions given; at most {limit}", param="steering")
    return SteeringSpec(interventions=tuple(interventions))


async def plan_of(state: AppState, steering: Steering | None) -> SteeringPlan:
    """The plan of a request. Names are resolved here, once; the answer names the versions that were used."""
    return await resolved(state, await spec_of(state, steering))


async def resolved(state: AppState, spec: SteeringSpec) -> SteeringPlan:
    """A spec for the loaded model, under the operator's dose guard."""
    guard = DoseGuard(state.settings.dose_bound, state.settings.dose_action)
    return await state.plans.resolve(spec, state.store.vectors, state.engine.info, guard)


async def readings_of(state: AppState, names: Sequence[str], param: str = "readout") -> tuple[Reading, ...]:
    """Live readouts of vectors, each at the middle of its recommended layers, in natural scales."""
    if len(names) > state.settings.max_readouts:
        raise LimitExceeded(f"{len(names)} readouts given; at most {state.settings.max_readouts}", param=param)
    readings = []
    for name in dict.fromkeys(names):
        vector = await vector_named(state.store, name, param)
        check_model(vector, state.engine.info)
        layers = vector.recommended_layers()
        layer = layers[len(layers) // 2]
        entry = vector.at(layer)
        readings.append(Reading(name, layer, entry.direction, entry.scale))
    return tuple(readings)
