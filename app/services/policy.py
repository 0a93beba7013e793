"""Reads, sets and clears the policy, and describes its monitors."""

from contextlib import suppress
from typing import Any

from app.errors import MonitorNotFound
from app.policy.policy import ActivePolicy
from app.services.limits import check_steering, check_stored
from app.state import AppState
from steering.engine.readings import EDGES, Monitor
from steering.errors import SteeringError
from steering.plan.dose import DoseGuard
from steering.plan.resolve import Mandatory
from steering.schemas.governance import (
    DistributionAnswer,
    HourAnswer,
    MonitorAnswer,
    MonitorDetail,
    PolicyAnswer,
    PolicySpec,
    RaiseAnswer,
)
from steering.vectors import VectorId


async def put(state: AppState, spec: PolicySpec) -> PolicyAnswer:
    """Sets the policy, with its vectors (of the namespace `shared`) pinned to their versions. Raises what resolving it raises."""
    check_steering(state.settings, spec.mandatory)
    check_stored(spec.mandatory)
    for name in spec.limits.vectors or ():
        VectorId.parse(name, "limits.vectors")
    resolved = await state.policy.resolve(spec, state.store, state.engine)
    await _check_with_defaults(state, resolved.mandatory)
    await _put(state, resolved)
    return answer(resolved.spec)


async def _put(state: AppState, policy: ActivePolicy) -> None:
    """Sets the policy, and reads what another server may have set at the same time: the one stored last holds everywhere."""
    await state.policy.put(policy, state.store)
    with suppress(SteeringError):
        await state.policy.refresh(state.store, state.engine)


async def _check_with_defaults(state: AppState, mandatory: Mandatory) -> None:
    """Raises the reason why requests without steering could not run under the policy and a default together."""
    plans, info = state.plans, state.engine.info
    for default in state.default_steering.by_namespace.values():
        try:
            await plans.resolve(default.pinned, default.source, info, DoseGuard(action="off"), mandatory)
        except SteeringError as error:
            error.message = f"together with the default steering: {error.message}"
            raise


async def clear(state: AppState) -> None:
    """Removes the policy, also one that cannot be applied."""
    await _put(state, ActivePolicy())


def answer(spec: PolicySpec) -> PolicyAnswer:
    """Describes a policy."""
    return PolicyAnswer(mandatory=spec.mandatory, monitors=spec.monitors, limits=spec.limits)


def describe_all(state: AppState) -> list[MonitorAnswer]:
    """Describes the monitors of the policy in its order."""
    by_name = {one.name: one for one in state.policy.active.monitors.ordered}
    return [MonitorAnswer(**_fields(by_name[one.name])) for one in state.policy.active.spec.monitors]


def describe(state: AppState, name: str) -> MonitorDetail:
    """Describes one monitor with the distribution of its scores. Raises MonitorNotFound."""
    found = next((one for one in state.policy.active.monitors.ordered if one.name == name), None)
    if found is None:
        known = ", ".join(one.name for one in state.policy.active.spec.monitors) or "none"
        raise MonitorNotFound(f"there is no monitor {name[:80]!r}; the policy has {known}", param="name")
    statistics = found.statistics
    return MonitorDetail(
        **_fields(found),
        distribution=DistributionAnswer(edges=list(EDGES), counts=list(statistics.buckets)),
        # pydantic reads Unix times as datetimes in UTC
        latest=[RaiseAnswer.model_validate(one, from_attributes=True) for one in reversed(list(statistics.latest))],
        hours=[
            HourAnswer(start=one.start, scores=one.count, raised=one.raised, mean=one.total / max(one.count, 1))
            for one in list(statistics.hours)
        ],
    )


def _fields(monitor: Monitor) -> dict[str, Any]:
    statistics, count = monitor.statistics, monitor.statistics.count
    return {
        "name": monitor.name,
        "vector": monitor.vector,
        "layer": monitor.reading.layer,
        "above": monitor.bound if monitor.above else None,
        "below": None if monitor.above else monitor.bound,
        "at": monitor.at,
        "action": monitor.action,
        "scores": count,
        "raised": statistics.raised,
        "answers": statistics.answers,
        "mean": statistics.total / count if count else None,
        "lowest": statistics.lowest if count else None,
        "highest": statistics.highest if count else None,
    }
