"""PlanBook: sends plans, readouts and monitors to the workers once, and has them dropped when no request needs them."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from steering.engine.vllm.messages import MonitorReading, encode
from steering.errors import InternalError
from steering.injection.readings import NO_MONITORS, MonitorSet, Reading
from steering.plan.types import SteeringPlan

KEPT = 64
"""Plans, readouts and monitors that stay with the workers without a request that uses them; the same are often sent again."""

Call = Callable[..., Awaitable[list[object]]]
"""Calls a method of every worker: (name, *arguments) -> their results."""

_Wanted: TypeAlias = tuple[str, str, Callable[[], bytes]]
"""(kind, key, encodes the value)."""


@dataclass(slots=True, eq=False)
class _Entry:
    sent: "asyncio.Task[None]"
    users: int = 0


class PlanBook:
    """What the workers hold, by key. To be used on one event loop."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    @asynccontextmanager
    async def held(
        self, plan: SteeringPlan, readings: tuple[Reading, ...], monitors: MonitorSet = NO_MONITORS
    ) -> AsyncIterator[dict[str, str]]:
        """Yields the keys of a plan, of readouts and of monitors while a request uses them, by kind; none for what is empty.

        Raises InternalError where a worker cannot apply them.
        """
        wanted: list[_Wanted] = []
        if not plan.empty:
            wanted.append(("plan", plan_key(plan), lambda: encode(replace(plan, vectors={}, warnings=()))))
        if readings:
            wanted.append(_by_content("readings", readings))
        if len(monitors):
            read = tuple(MonitorReading(one.reading, one.at) for one in monitors.ordered)
            wanted.append(_by_content("monitors", read))
        entries = [self._use(*one) for one in wanted]
        try:
            for entry in entries:
                await asyncio.shield(entry.sent)
            yield {kind: key for kind, key, _ in wanted}
        finally:
            for entry in entries:
                entry.users -= 1
            await self._forget_unused()

    def _use(self, kind: str, key: str, content: Callable[[], bytes]) -> _Entry:
        entry = self._entries.get((kind, key))
        if entry is None or (entry.sent.done() and entry.sent.exception() is not None):
            entry = self._entries[kind, key] = _Entry(asyncio.create_task(self._send(kind, key, content())))
        self._entries.move_to_end((kind, key))
        entry.users += 1
        return entry

    async def _send(self, kind: str, key: str, content: bytes) -> None:
        reasons = [reason for reason in await self._call("steering_put", kind, key, content) if reason]
        if reasons:
            raise InternalError(f"the engine cannot apply this steering: {reasons[0]}")

    async def _forget_unused(self) -> None:
        unused = [key for key, entry in self._entries.items() if entry.users == 0 and entry.sent.done()]
        dropped = unused[: max(len(unused) - KEPT, 0)]
        for key in dropped:
            del self._entries[key]
        if dropped:
            await self._call("steering_forget", [key for _, key in dropped])


def plan_key(plan: SteeringPlan) -> str:
    """Returns the fingerprint with the order of interventions and thresholds, which a report refers to by number and
    which the fingerprint does not know."""
    order = [
        [[layer, [one.interventions for one in edits]] for layer, edits in plan.layers.items()],
        [[one.vector, one.score, one.layer, one.parameters, one.above, one.bound, one.until, one.at] for one in plan.thresholds],
        plan.reusable,
    ]  # fmt: skip
    return f"{plan.fingerprint}-{hashlib.sha256(repr(order).encode()).hexdigest()[:16]}"


def _by_content(kind: str, value: object) -> _Wanted:
    """Names a value by the digest of what is sent; it is encoded once."""
    content = encode(value)
    return kind, f"{kind}-{hashlib.sha256(content).hexdigest()}", lambda: content
