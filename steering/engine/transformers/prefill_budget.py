"""PrefillBudget: how many prompt positions a pass computes, so that no running stream waits for long."""

from steering.engine.options import EngineLimits
from steering.plan.types import SteeringPlan

LIVE_SECONDS, BACKGROUND_SECONDS = 0.25, 0.15
"""How long the prompt positions of a pass may take while streams run; background ones delay them less.

Larger passes read the weights less often and have longer gaps. Two cores (AMD EPYC, SmolLM2-135M), with 0.4 / 0.25 / 0.15 s, in turns: the mixed
load of benchmarks/ takes as long with each; its first tokens come after 0.30 / 0.30 / 0.34 s at p99; when a prompt of 2,000 tokens
arrives among 8 streams, their p99 gap is 0.33 / 0.23 / 0.19 s.
"""
IDLE_SECONDS, IDLE_BACKGROUND_SECONDS = 2.0, 0.5
"""The same while no stream runs: for so long a pass goes on after its client has left, and a request that comes waits for it. A pass
must end long before the watchdog takes it for one that hangs."""
LEAST, FIRST = 32, 64
"""Positions of a pass: at least, since a smaller one costs what its weights cost to read; and before the rate is known."""
MEMORY = 2048
"""The rate is a mean over about so many positions, in which larger passes count more, since positions of small ones take longer."""
SMOOTHING = 0.3
CALL_COST = 0.004
"""What a call of an operation at a position costs, in positions, as long as nothing else was measured: on two cores with SmolLM2-135M a
prompt of 2,000 tokens takes twice as long with 240 calls."""
CALL_PRIOR = 1e7
"""How much that counts: as much as a pass with the root of so many calls at its positions together. So plans of a few calls, whose cost is less
than passes differ by chance, teach nothing about it."""


def prompt_calls(plan: SteeringPlan) -> int:
    """Returns how many edits and tests of conditions a plan has computed at each prompt position, over all layers."""
    acting = sum(len(one.kinds) for edits in plan.layers.values() for one in edits if one.prompt_key)
    return acting + sum(threshold.at != "prompt" for threshold in plan.thresholds)


class PrefillBudget:
    """Learns the seconds of a prompt position and of a call at one, and gives a pass as many positions as take the time they may.

    They are those of least squares over earlier passes: seconds = position * positions + call * calls.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._decode_seconds: float | None = None
        self._sums = [0.0] * 5
        self._position: float | None = None
        self._call = 0.0

    def positions(self, streams: int, *, background: bool) -> int:
        """Returns how many positions without calls the next pass may compute, for which `streams` wait; see `cost`."""
        most = self._limits.idle_prefill_tokens
        if streams:
            seconds = BACKGROUND_SECONDS if background else LIVE_SECONDS
            most = min(most, self._limits.prefill_tokens)
        else:
            seconds = IDLE_BACKGROUND_SECONDS if background else IDLE_SECONDS
        allowed = FIRST if self._position is None else max(int(seconds / self._position), LEAST)
        return min(allowed, most)

    def cost(self, calls: int) -> float:
        """Returns how many positions one with so many calls counts as."""
        return 1.0 + calls * (CALL_COST if self._position is None else self._call / self._position)

    def alone(self, positions: float) -> float:
        """Returns the seconds that so many positions of a prompt would take if no other was computed; 0 if not known yet."""
        return positions * self._position if self._position else 0.0

    def observe(self, positions: int, streams: int, seconds: float, *, calls: int = 0) -> None:
        """Notes how long a pass took with so many prompt positions, calls at them together, and decoding streams."""
        if not positions:
            before = self._decode_seconds
            self._decode_seconds = seconds if before is None else before + SMOOTHING * (seconds - before)
            return
        if streams:
            # where a slow pass has raised the mean of decode passes: a tenth, or the rate would be without bound
            seconds = max(seconds - (self._decode_seconds or 0.0), 0.1 * seconds)
        if positions - calls + calls * self.cost(1) < LEAST - 0.5:
            return
        kept = max(1.0 - positions / MEMORY, 0.0)
        new = (positions**2, positions * calls, calls**2, positions * seconds, calls * seconds)
        self._sums = [kept * before + now for before, now in zip(self._sums, new, strict=True)]
        self._position, self._call = _least_squares(*self._sums)


def _least_squares(pp: float, pc: float, cc: float, ps: float, cs: float) -> tuple[float, float]:
    """Returns the seconds of a position and of a call, from sums of products of positions, calls and seconds. Neither is negative."""
    prior = CALL_PRIOR * CALL_COST
    left, cross, right = pp + prior * CALL_COST, pc - prior, cc + CALL_PRIOR
    determinant = left * right - cross**2
    position, call = (ps * right - cs * cross) / determinant, (left * cs - cross * ps) / determinant
    if call < 0.0:
        return ps / pp, 0.0
    if position <= 0.0:
        position = (ps + CALL_COST * cs) / (pp + 2 * CALL_COST * pc + CALL_COST**2 * cc)
        return position, CALL_COST * position
    return position, call
