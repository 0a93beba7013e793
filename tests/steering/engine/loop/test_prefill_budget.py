"""The prompt positions of a pass take as long as they may on any machine, and those of background work less."""

import pytest

from steering.engine.options import EngineLimits
from steering.engine.transformers.prefill_budget import BACKGROUND_SECONDS, FIRST, LEAST, LIVE_SECONDS, PrefillBudget

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
