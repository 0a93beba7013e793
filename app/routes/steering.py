"""/v1/steering: the default steering of requests that name none."""

from fastapi import APIRouter

from app.http.dependencies import StateDep, StoreDep, resolved
from app.http.request_reading import ApiRoute
from steering.schemas.steering import DefaultSteering, DefaultSteeringAnswer
from steering.spec import SteeringSpec

router = APIRouter(route_class=ApiRoute, tags=["profiles"])


@router.put("/v1/steering", response_model_exclude_unset=True)
async def put(body: DefaultSteering, state: StateDep, store: StoreDep) -> DefaultSteeringAnswer:
    """Sets it; it must be possible on the loaded model."""
    spec = SteeringSpec(interventions=body.interventions)
    await resolved(state, spec)
    await store.profiles.set_default(spec)
    return DefaultSteeringAnswer(interventions=spec.interventions)


@router.get("/v1/steering", response_model_exclude_unset=True)
async def read(store: StoreDep) -> DefaultSteeringAnswer:
    """What it is; null when none is set."""
    spec = await store.profiles.default()
    return DefaultSteeringAnswer(interventions=None if spec is None else spec.interventions)


@router.delete("/v1/steering", status_code=204)
async def clear(store: StoreDep) -> None:
    """Requests that name no steering are unsteered again."""
    await store.profiles.set_default(None)
