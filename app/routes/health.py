"""/health: live (the process answers), ready (it can work), and an alias of ready. Open to everyone, said to no one else."""

from fastapi import APIRouter

from app.http.dependencies import StateDep
from steering.schemas.system import HealthAnswer

router = APIRouter(tags=["operation"])


@router.get("/health/live")
async def live() -> HealthAnswer:
    """The process answers."""
    return HealthAnswer(status="ok")


@router.get("/health")
@router.get("/health/ready")
async def ready(state: StateDep) -> HealthAnswer:
    """Model loaded, engine alive, store reachable, not draining; else 503 with the reason."""
    await state.check_ready()
    return HealthAnswer(status="ok")
