"""The prompt positions of a pass take as long as they may on any machine, and those of background work less."""

from math import ceil

import pytest

from steering.engine.options import EngineLimits
from steering.engine.transformers.request import prompt_calls
from steering.engine.transformers.scheduler import (
    BACKGROUND_SECONDS,
    CALL_COST,
    FIRST,
    IDLE_BACKGROUND_SECONDS,
    IDLE_SECONDS,
    LEAST,
    LIVE_SECONDS,
    PrefillBudget,
)
from tests.plans import plan_for, vectors_for
from tests.steering.engine.loop.scheduled import World, request, text
from tests.steering.plan.planning import INFO

LIMITS = EngineLimits(prefill_tokens=8192, idle_prefill_tokens=8192)


def settled(decode: float, each: float, limits: EngineLimits = LIMITS, fixed: float = 0.0) -> PrefillBudget:
    """The budget after many passes on a machine where prompt positions take fixed + each * positions seconds more."""
    budget = PrefillBudget(limits)
    for _ in range(200):
        budget.observe(0, 8, decode)
        positions = budget.positions(8, background=False)
        budget.observe(positions, 8, decode + fixed + each * positions)
    return budget


@pytest.mark.parametrize("each", [1e-3, 2e-4])
@pytest.mark.parametrize("decode", [0.03, 0.2])
def test_prompt_positions_take_as_long_as_they_may(decode: float, each: float) -> None:
    budget = settled(decode, each)
    assert budget.positions(8, background=False) == pytest.approx(LIVE_SECONDS / each, rel=0.02)
    assert budget.positions(8, background=True) == pytest.approx(BACKGROUND_SECONDS / each, rel=0.02)


def test_a_cost_that_every_pass_has_is_part_of_the_time() -> None:
    positions = settled(0.03, 1e-3, fixed=0.1).positions(8, background=False)
    assert 0.1 + 1e-3 * positions == pytest.approx(LIVE_SECONDS, rel=0.02)


def test_an_operator_s_limit_holds_and_that_of_a_pass_without_streams() -> None:
    limits = EngineLimits(prefill_tokens=100, idle_prefill_tokens=150)
    budget = settled(0.02, 1e-5, limits)
    assert budget.positions(8, background=False) == budget.positions(8, background=True) == 100
    assert budget.positions(0, background=False) == budget.positions(0, background=True) == 150
    assert (
        settled(0.02, 1e-5, EngineLimits(prefill_tokens=300, idle_prefill_tokens=150)).positions(8, background=False)
        == 150
    )


def test_a_slow_machine_still_makes_progress() -> None:
    assert settled(0.001, 1.0).positions(8, background=False) == LEAST


def test_the_first_pass_is_careful() -> None:
    assert PrefillBudget(LIMITS).positions(8, background=False) == FIRST


def test_short_prompts_teach_little_about_long_ones() -> None:
    """Ten passes of 40 positions, each of which takes three times as long as one of a long prompt."""
    budget = settled(0.03, 1e-3)
    before = budget.positions(8, background=False)
    for _ in range(10):
        budget.observe(LEAST - 1, 8, 10.0)
        budget.observe(40, 8, 0.03 + 40 * 3e-3)
    assert budget.positions(8, background=False) >= 0.85 * before


def test_how_long_a_prompt_takes_alone_is_learned() -> None:
    budget = PrefillBudget(LIMITS)
    assert budget.alone(500) == 0.0
    for _ in range(20):
        budget.observe(200, 0, 0.2)
    assert budget.alone(500) == pytest.approx(0.5)


class Device:
    """A device that takes a time of its own for every position and every call, and the pass it computes with a budget's leave."""

    def __init__(self, position: float, call: float = 0.0, limits: EngineLimits = LIMITS) -> None:
        self.position, self.call = position, call
        self.budget = PrefillBudget(limits)
        self.longest = 0.0

    def run(self, calls: int = 0, *, streams: int = 0, background: bool = False, left: int = 1 << 30) -> int:
        """Computes a pass over a prompt whose plan has so many calls; returns the positions."""
        allowed = self.budget.positions(streams, background=background)
        positions = min(ceil(allowed / self.budget.cost(calls)), left)
        seconds = positions * (self.position + calls * self.call)
        self.longest = max(self.longest, seconds)
        self.budget.observe(positions, streams, seconds, calls=positions * calls)
        return positions


@pytest.mark.parametrize("rate", [12, 100, 3000, 1_000_000])
def test_a_pass_without_streams_ends_in_time_on_any_device(rate: int) -> None:
    """Engine A5, N4: at 12 positions a second 2,048 take 171 s, and the watchdog ends the process after 120. A prompt whose reader
    leaves is computed no longer than the pass takes."""
    device = Device(1 / rate, limits=EngineLimits())
    left, passes = 3000, 0
    while left:
        left -= device.run(left=left)
        passes += 1
    assert device.longest <= max(IDLE_SECONDS, FIRST / rate)
    assert device.longest < 120.0 / 10
    if rate >= 3000:
        assert passes <= 1 + 2, "and a fast one computes as much at once as before"


def test_background_prompts_leave_room_for_a_request_that_comes() -> None:
    """Service C: texts of a job without live requests are computed in passes as short as one that comes may wait for."""
    device = Device(1 / 1000)
    assert device.run(background=True) == FIRST
    assert device.run(background=True) == IDLE_BACKGROUND_SECONDS * 1000
    assert device.run() == IDLE_SECONDS * 1000


HEAVY = 240
"""Calls: eight adds relative to the residual, at 30 layers."""


@pytest.mark.parametrize("call", [0.0, 0.002, 0.01, 0.1])
def test_a_plan_of_many_calls_takes_no_longer_than_a_plain_prompt(call: float) -> None:
    """Engine A10, N9: calls at a position cost a share of it that a device has learned, so streams wait as long as they may."""
    device = Device(1e-3, call * 1e-3)
    for _ in range(10):
        device.run(streams=8)
        device.run(HEAVY, streams=8)
    device.longest = 0.0
    for _ in range(10):
        device.run(streams=8)
        device.run(HEAVY, streams=8)
        device.run(HEAVY // 4, streams=8)
    assert device.longest <= 1.15 * LIVE_SECONDS
    assert device.run(HEAVY, streams=8) == pytest.approx(LIVE_SECONDS / (1e-3 * (1 + HEAVY * call)), rel=0.1)
    assert device.run(streams=8) == pytest.approx(LIVE_SECONDS / 1e-3, rel=0.1)


def test_a_device_that_has_only_seen_heavy_plans_keeps_their_time_and_learns_of_plain_ones() -> None:
    device = Device(1e-3, 2e-5)
    for _ in range(20):
        device.run(HEAVY, streams=8)
    assert device.longest <= 1.1 * LIVE_SECONDS
    for _ in range(20):
        device.run(streams=8)
    assert device.run(streams=8) == pytest.approx(LIVE_SECONDS / 1e-3, rel=0.1)


def test_plans_of_a_few_calls_teach_nothing_about_many() -> None:
    """Passes that happen to take a tenth longer with one call than without would make a plan of 240 calls 25 times as long."""
    budget = PrefillBudget(LIMITS)
    for _ in range(20):
        budget.observe(200, 8, 0.2)
        budget.observe(200, 8, 0.22, calls=200)
    assert budget.cost(HEAVY) < 3


async def test_the_scheduler_counts_the_calls_of_a_plan() -> None:
    """A prompt with calls at every position gets fewer of them into a pass; one whose plan leaves the prompt alone does not."""
    vectors = vectors_for(INFO)
    heavy = {"vector": "alpha", "unit": "relative", "strength": 0.1, "layers": "all"}
    plans = [
        await plan_for([{**heavy, "scope": {"tokens": tokens}}] * 8, vectors, INFO) for tokens in ("all", "generated")
    ]
    amounts = []
    for plan in plans:
        world = World(1000)
        world.scheduler.budget.observe(500, 0, 0.5)
        one = request(4000, 2)
        one.plan, one.prompt_calls = plan, prompt_calls(plan)
        world.put([one])
        ((_, amount),) = world.turn()
        amounts.append(amount)
    calls = 8 * INFO.layer_count
    assert amounts == [ceil(2000 / (1 + calls * CALL_COST)), 2000]


def test_a_short_text_does_not_wait_for_the_long_ones_of_a_job() -> None:
    """Service C: the texts of a comparison come after 48 of an extraction, in passes that have room for one long text."""
    world = World(10_000)
    for _ in range(3):
        world.scheduler.budget.observe(2000, 0, 1.0)
    job, comparison = [text(1750, "job") for _ in range(48)], [text(40, "comparison") for _ in range(2)]
    for one in job:
        one.priority = 1
    world.put(job)
    for _ in range(2):
        world.turn()
    world.put(comparison)
    turns = 0
    while not all(one in world.ended for one in comparison):
        world.turn()
        turns += 1
    assert turns == 1
    assert sum(one in world.ended for one in job) <= 1
    world.finish()
