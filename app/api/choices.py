"""The evaluation `choices` of POST /v1/evaluations: its checks, and its work."""

from functools import partial
from typing import Any

from app.api.context import Context
from app.api.jobs import Work
from app.core.admission import check_limit
from steering.lab import choices
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.choices import ChoicesRequest
from steering.threads import run_in_thread
from steering.workflows.generate import Progress


async def prepare_choices(context: Context, body: ChoicesRequest) -> Work:
    """Checks the request and counts its tokens: those of each question for each of its letters, as POST /v1/score does. Raises
    LimitExceeded, ContextLengthExceeded, RateLimited."""
    check_limit(len(body.items), context.settings.max_texts, "items", "items")
    plan = await context.plan(body.steering)
    plans = 1 if plan.empty else 2
    rows = sum(2 * len(item.choices) for item in body.items) * plans
    check_limit(rows, context.settings.max_evaluation_answers, "letters to read, in both orders", "items")

    def tokens() -> int:
        return sum(len(row.prompt) for row in choices.rows(context.engine, body.items, UNSTEERED))

    context.charge(plans * await run_in_thread(tokens))
    return partial(_run, context, body, plan)


async def _run(context: Context, body: ChoicesRequest, plan: SteeringPlan, progress: Progress) -> dict[str, Any]:
    return (await choices.measure(context.engine, body.items, plan, progress=progress)).model_dump(mode="json")
