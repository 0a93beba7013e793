"""The budget of prompt passes settles where a pass takes STALL times a decode pass, whatever the machine's speed."""

import pytest

from steering.engine.options import EngineLimits
from steering.engine.transformers.prefill_budget import LEAST, STALL, PrefillBudget

LIMITS = EngineLimits(prefill_tokens=2048, idle_prefill_tokens=4096)


def settled(decode: float, fixed: float, each: float, limits: EngineLimits = LIMITS) -> int:
    """The budget after many passes on a machine whose prompt passes take fixed + each * positions seconds."""
    pace = PrefillBudget()
    for _ in range(60):
        pace.decoded(decode)
        positions = pace.budget(limits, 1, 8)
        pace.computed(positions, fixed + each * positions)
    return pace.budget(limits, 1, 8)


@pytest.mark.parametrize("each", [1e-3, 1e-4])
@pytest.mark.parametrize("decode", [0.03, 0.2])
def test_a_pass_takes_as_long_as_it_may(decode: float, each: float) -> None:
    expected = (STALL * decode - 0.02) / each
    assert settled(decode, 0.02, each) == pytest.approx(min(max(expected, LEAST), 2048), rel=0.1)


def test_an_operator_s_limit_holds() -> None:
    assert settled(1.0, 0.0, 1e-6, EngineLimits(prefill_tokens=100)) == 100


def test_a_slow_machine_still_makes_progress() -> None:
    assert settled(0.001, 1.0, 1.0) == LEAST


def test_short_prompts_teach_nothing_that_hinders_long_ones() -> None:
    pace = PrefillBudget()
    for _ in range(60):
        pace.decoded(0.1)
        pace.computed(pace.budget(LIMITS, 1, 8), 0.1)
    before = pace.budget(LIMITS, 1, 8)
    for _ in range(60):
        pace.budget(LIMITS, 1, 8)
        pace.computed(10, 0.02)
    assert pace.budget(LIMITS, 1, 8) == before


def test_a_crowd_that_waits_to_begin_weighs_more_than_the_few_who_go_on() -> None:
    pace = PrefillBudget()
    limits = EngineLimits(prefill_tokens=256, idle_prefill_tokens=2048)
    assert pace.budget(limits, 31, 1) == 2048
    assert pace.budget(limits, 16, 8) == 512
    assert pace.budget(limits, 5, 0) == 2048
    assert pace.budget(limits, 1, 31) < 256
