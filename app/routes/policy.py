"""/v1/policy and /v1/monitors: what an admin enforces on all traffic, and what its monitors measured."""

from fastapi import APIRouter

from app.http.dependencies import StateDep
from app.http.request_reading import ApiRoute, needs
from app.services import policy
from steering.schemas.governance import MonitorDetail, MonitorList, PolicyAnswer, PolicySpec

router = APIRouter(route_class=ApiRoute, tags=["policy"])


@router.get("/v1/policy", openapi_extra=needs("admin"), response_model_exclude_unset=True)
async def read(state: StateDep) -> PolicyAnswer:
    """Returns the policy. Without one everything in it is empty."""
    return policy.answer(state.policy.active.spec)


@router.put("/v1/policy", openapi_extra=needs("admin"), response_model_exclude_unset=True)
async def put(body: PolicySpec, state: StateDep) -> PolicyAnswer:
    """Sets the policy of all traffic. It must be valid for the loaded model."""
    return await policy.put(state, body)


@router.delete("/v1/policy", status_code=204, openapi_extra=needs("admin"))
async def delete(state: StateDep) -> None:
    """Removes the policy, also one that cannot be applied."""
    await policy.clear(state)


@router.get("/v1/monitors", openapi_extra=needs("admin"))
async def monitors(state: StateDep) -> MonitorList:
    """Lists the monitors of the policy with their counts."""
    return MonitorList(data=policy.describe_all(state))


@router.get("/v1/monitors/{name}", openapi_extra=needs("admin"))
async def monitor(name: str, state: StateDep) -> MonitorDetail:
    """Returns one monitor: counts, the distribution of its scores, the latest raises, the mean of each hour."""
    return policy.describe(state, name)
