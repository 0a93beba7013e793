"""Plans for a model of four layers whose typical norms are known."""

from typing import Any

from steering.model.info import ModelInfo
from steering.plan.resolve import resolve
from steering.plan.types import DoseGuard, SteeringPlan
from steering.spec import SteeringSpec
from tests.plans import Vectors, vectors_for

INFO = ModelInfo("tiny", "Llama", "f" * 64, 16, 4, 100, 256, "float32", "cpu", 1000, True, (10.0, 20.0, 30.0, 40.0))


async def plan_of(*items: dict[str, Any], guard: DoseGuard | None = None, info: ModelInfo = INFO) -> SteeringPlan:
    """Resolves interventions in the form of the API."""
    spec = SteeringSpec.model_validate({"interventions": list(items)})
    return await resolve(spec, Vectors(vectors_for(INFO)), info, guard=guard)
