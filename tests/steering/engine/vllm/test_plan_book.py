"""Plans are sent once, stay while requests use them, and are named by everything a report refers to."""

import asyncio
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from steering.engine.vllm.messages import KEPT, MonitorReading, PlanBook, decode, plan_key
from steering.errors import InternalError
from steering.injection.readings import Monitor, MonitorSet, Reading
from steering.plan.types import UNSTEERED, SteeringPlan
from tests.fakes import ScriptedEngine
from tests.plans import plan_adding, plan_for, vectors_for

KINDS: dict[str, Any] = {
    "plan": SteeringPlan, "readings": tuple[Reading, ...], "monitors": tuple[MonitorReading, ...],
}  # fmt: skip


class Workers:
    """Records what workers are sent."""

    def __init__(self, reason: str = "") -> None:
        self.calls: list[tuple[str, ...]] = []
        self.contents: list[Any] = []
        self.reason = reason

    async def __call__(self, name: str, *arguments: Any) -> list[object]:
        await asyncio.sleep(0)
        if name == "steering_put":
            self.calls.append((name, arguments[0], arguments[1]))
            self.contents.append(decode(arguments[2], KINDS[arguments[0]]))
            return [self.reason, ""]
        self.calls.append((name, *arguments[0]))
        return [None, None]


def plan(number: int) -> SteeringPlan:
    return plan_adding(0, torch.ones(4), f"plan {number}")


async def test_requests_at_once_send_a_plan_once() -> None:
    workers = Workers()
    book = PlanBook(workers)
    reading = Reading("up", 1, torch.ones(4), 1.0)

    async def use() -> tuple[str, str]:
        async with book.held(plan(1), (reading,)) as keys:
            await asyncio.sleep(0.01)
            return keys["plan"], keys["readings"]

    found = await asyncio.gather(*(use() for _ in range(5)), use())
    assert len(set(found)) == 1
    assert [call[:2] for call in workers.calls] == [("steering_put", "plan"), ("steering_put", "readings")]
    async with book.held(UNSTEERED, ()) as keys:
        assert keys == {}
    assert len(workers.calls) == 2


async def test_unused_plans_are_dropped_oldest_first_and_used_ones_stay() -> None:
    workers = Workers()
    book = PlanBook(workers)
    async with book.held(plan(-1), ()):
        for number in range(KEPT + 2):
            async with book.held(plan(number), ()):
                pass
        dropped = [key for call in workers.calls if call[0] == "steering_forget" for key in call[1:]]
        assert dropped == [plan_key(plan(0)), plan_key(plan(1))]
    async with book.held(plan(0), ()):
        assert workers.calls[-1][:2] == ("steering_put", "plan")


async def test_a_plan_that_a_worker_refuses_is_an_error_of_its_request_and_is_tried_again() -> None:
    workers = Workers("no")
    book = PlanBook(workers)
    for _ in range(2):
        with pytest.raises(InternalError, match="no"):
            async with book.held(plan(1), ()):
                pass
    assert len(workers.calls) == 2
    workers.reason = ""
    async with book.held(plan(1), ()):
        pass


async def test_a_plan_is_sent_without_copies_and_keyed_with_the_order_of_its_thresholds() -> None:
    info = ScriptedEngine().info
    when = [{"vector": name, "above": 0.0, "layer": 0} for name in ("alpha", "beta")]
    items = [{"vector": "alpha", "strength": 1.0, "layers": [1], "when": {"any": when}}]
    found = await plan_for(items, vectors_for(info), info)
    swapped = replace(found, thresholds=found.thresholds[::-1])
    assert plan_key(found) == plan_key(replace(found))
    assert plan_key(found) != plan_key(swapped)
    workers = Workers()
    async with PlanBook(workers).held(found, ()):
        pass
    (sent,) = workers.contents
    assert sent.vectors == {}
    assert torch.equal(sent.layers[1][0].write, found.layers[1][0].write)


async def test_plans_with_other_numbers_of_interventions_have_other_keys() -> None:
    """A report has the doses of each intervention by number, also of one that changes nothing."""
    info = ScriptedEngine().info
    add = {"vector": "alpha", "strength": 2.0, "layers": [1]}
    alone = await plan_for([add], vectors_for(info), info)
    with_idle = await plan_for([add, {**add, "vector": "beta", "strength": 0.0}], vectors_for(info), info)
    assert alone.fingerprint == with_idle.fingerprint
    assert plan_key(alone) != plan_key(with_idle)


async def test_plans_with_other_scopes_have_other_keys() -> None:
    """A worker asks every scope for its tokens, also that of an intervention that changes nothing."""
    info = ScriptedEngine().info
    add = {"vector": "alpha", "strength": 2.0, "layers": [1]}
    idle = {**add, "vector": "beta", "strength": 0.0}
    plain = await plan_for([add, idle], vectors_for(info), info)
    scope = {"tokens": "prompt", "roles": ["user"]}
    of_roles = await plan_for([add, {**idle, "scope": scope}], vectors_for(info), info)
    assert plain.fingerprint == of_roles.fingerprint
    assert plan_key(plain) != plan_key(of_roles)


async def test_monitors_are_sent_once_without_their_bounds_and_keep_their_order() -> None:
    places: tuple[tuple[str, Literal["prompt", "generated"]], ...] = (("first", "prompt"), ("second", "generated"))
    watched = MonitorSet([
        Monitor(name, f"{name}@1", "", Reading(name, 1, torch.ones(4), 1.0), above=True, bound=0.5, at=at)
        for name, at in places
    ])  # fmt: skip
    workers = Workers()
    book = PlanBook(workers)
    for _ in range(2):
        async with book.held(UNSTEERED, (), watched) as keys:
            assert keys["monitors"]
    ((name, kind, key),) = workers.calls
    assert (name, kind, key) == ("steering_put", "monitors", keys["monitors"])
    (sent,) = workers.contents
    assert [(one.reading.name, one.at) for one in sent] == [("second", "generated"), ("first", "prompt")]
