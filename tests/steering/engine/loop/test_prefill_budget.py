"""The budget of prompt positions settles where they take STALL times a pass without any, at most MAX_GAP, on any machine."""

import pytest

from steering.engine.options import EngineLimits
from steering.engine.transformers.prefill_budget import LEAST, MAX_GAP, STALL, PrefillBudget

LIMITS = EngineLimits(prefill_tokens=2048, idle_prefill_tokens=4096)


def settled(decode: float, fixed: float, each: float, limits: EngineLimits = LIMITS) -> int:
    """The budget after many passes on a machine where prompt positions take fixed + each * positions seconds more."""
    budget = PrefillBudget(limits)
    for _ in range(60):
        budget.observe(0, 8, decode)
        positions = budget.positions(1, 8)
        budget.observe(positions, 8, decode + fixed + each * positions)
    return budget.positions(1, 8)


@pytest.mark.parametrize("each", [1e-3, 1e-4])
@pytest.mark.parametrize("decode", [0.03, 0.2])
def test_prompt_positions_take_as_long_as_they_may(decode: float, each: float) -> None:
    expected = (min(STALL * decode, MAX_GAP) - 0.02) / each
    assert settled(decode, 0.02, each) == pytest.approx(min(max(expected, LEAST), 2048), rel=0.1)


def test_an_operator_s_limit_holds() -> None:
    assert settled(1.0, 0.0, 1e-6, EngineLimits(prefill_tokens=100)) == 100


def test_a_slow_machine_still_makes_progress() -> None:
    assert settled(0.001, 1.0, 1.0) == LEAST


def test_short_prompts_teach_nothing_that_hinders_long_ones() -> None:
    budget = PrefillBudget(LIMITS)
    for _ in range(60):
        budget.observe(0, 8, 0.1)
        budget.observe(budget.positions(1, 8), 8, 0.2)
    before = budget.positions(1, 8)
    for _ in range(60):
        budget.positions(1, 8)
        budget.observe(10, 8, 0.12)
    assert budget.positions(1, 8) == before


def test_every_prompt_that_waits_has_its_share() -> None:
    budget = PrefillBudget(LIMITS)
    for _ in range(60):
        budget.observe(0, 8, 0.02)
        budget.observe(budget.positions(1, 8), 8, 0.02 + budget.positions(1, 8) * 1e-3)
    one = budget.positions(1, 8)
    assert budget.positions(2, 8) == pytest.approx(2 * one, abs=2)


def test_the_share_of_a_prompt_does_not_depend_on_how_many_waited_while_it_was_learned() -> None:
    budget = PrefillBudget(LIMITS)
    for _ in range(60):
        budget.observe(0, 8, 0.02)
        budget.observe(budget.positions(3, 8), 8, 0.02 + budget.positions(3, 8) * 1e-3)
    assert budget.positions(1, 8) == pytest.approx(STALL * 0.02 / 1e-3, rel=0.1)


def test_limits_hold_for_each_prompt_that_waits_and_for_all_of_them() -> None:
    budget = PrefillBudget(EngineLimits(prefill_tokens=20, idle_prefill_tokens=150))
    assert budget.positions(1, 8) == 20
    assert budget.positions(3, 8) == 60
    assert budget.positions(31, 1) == 150
    assert budget.positions(5, 0) == 150


def test_no_stream_waits_longer_than_the_gap_however_many_prompts_wait() -> None:
    budget = PrefillBudget(EngineLimits(prefill_tokens=256, idle_prefill_tokens=2048))
    for _ in range(20):
        budget.observe(0, 1, 0.02)
        budget.observe(200, 1, 0.02 + 0.2)  # 1,000 positions a second
    assert budget.positions(63, 1) == pytest.approx(1000 * MAX_GAP, rel=0.05)


def test_how_long_a_prompt_takes_alone_is_learned() -> None:
    budget = PrefillBudget(LIMITS)
    assert budget.alone(500) == 0.0
    for _ in range(20):
        budget.observe(200, 0, 0.2)
    assert budget.alone(500) == pytest.approx(0.5)
