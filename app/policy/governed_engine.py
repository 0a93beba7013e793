"""GovernedEngine: the only engine that routes and workflows get, so that no pass of the model is outside the policy."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from cachetools import LRUCache

from app.logs import current_request_id
from app.policy.policy import ActivePolicy, Policy
from steering.engine.api import (
    Capture,
    CapturePrompt,
    CaptureSpec,
    Engine,
    EngineStats,
    GenerationRequest,
    SteeringReport,
    TokenEvent,
    Tokenizer,
)
from steering.model.info import ModelInfo
from steering.plan.mandatory import carries, under
from steering.plan.types import SteeringPlan
from steering.threads import run_in_thread

RECENT_PLANS = 64
"""Plans whose form under the policy is kept."""


class GovernedEngine(Engine):
    """Puts every pass under the policy that holds when it begins, whoever asks for it and with whatever plan.

    A plan that does not end with what is mandatory now is followed by it: no steering at all becomes the mandatory steering, and a
    plan that was resolved under an earlier policy loses what was mandatory then. Every answer is read by the monitors. Both raise
    PolicyInvalid while the policy cannot be applied. A report is then of the plan's own interventions alone.

    What only some engines have (`unembed`, `fit`, their limits) is the engine's own: it returns nothing that the model predicts from a text
    that was not read by `capture`.
    """

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self._engine, self._policy = engine, policy
        self._plans: LRUCache[tuple[SteeringPlan, SteeringPlan], SteeringPlan] = LRUCache(RECENT_PLANS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def name(self) -> str:
        """See Engine.name."""
        return self._engine.name

    @property
    def info(self) -> ModelInfo:
        """See Engine.info."""
        return self._engine.info

    @property
    def tokenizer(self) -> Tokenizer:
        """See Engine.tokenizer."""
        return self._engine.tokenizer

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        return self._engine.stats()

    async def close(self) -> None:
        """See Engine.close."""
        await self._engine.close()

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate."""
        policy = self._policy.active
        request_id = request.request_id or current_request_id()
        request = replace(request, monitors=policy.monitors, request_id=request_id)
        if carries(request.plan, policy.unsteered):
            return self._engine.generate(request)
        return self._governed(request, policy)

    async def _governed(self, request: GenerationRequest, policy: ActivePolicy) -> AsyncGenerator[TokenEvent, None]:
        plan = await self._under(request.plan, policy)
        async with aclosing(self._engine.generate(replace(request, plan=plan))) as events:
            async for event in events:
                if event.finish is None:
                    yield event
                else:
                    report = _as_asked(event.finish.steering, request.plan)
                    yield replace(event, finish=replace(event.finish, steering=report))

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """See Engine.capture."""
        policy = self._policy.active
        plans = {one.plan: await self._under(one.plan, policy) for one in prompts}
        governed = [one if plans[one.plan] is one.plan else replace(one, plan=plans[one.plan]) for one in prompts]
        return await self._engine.capture(governed, spec, progress=progress, priority=priority)

    async def _under(self, plan: SteeringPlan, policy: ActivePolicy) -> SteeringPlan:
        if carries(plan, policy.unsteered):
            return plan
        key = (plan, policy.unsteered)
        known = self._plans.get(key)
        if known is None:  # hashes every direction, which takes longer than the event loop may stand still
            known = self._plans[key] = await run_in_thread(under, plan, policy.unsteered, self.info.fingerprint)
        return known


def _as_asked(report: SteeringReport, plan: SteeringPlan) -> SteeringReport:
    """Returns a report of a plan's own interventions alone."""
    names = ("doses", "fired", "fired_at", "tokens", "condition_scores", "held")
    return replace(report, **{name: getattr(report, name)[: plan.own] for name in names})
