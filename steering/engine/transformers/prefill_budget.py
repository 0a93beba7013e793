"""PrefillBudget: how many prompt positions a pass computes, so that no running stream waits for long."""

from steering.engine.options import EngineLimits

STALL = 6.0
"""The prompt positions of a pass may take this many times as long as a pass without any, for each prompt that waits. Below
that the passes are so small that prompts take longer: with 2.2, eight of 1,820 tokens take 14.1 instead of 12.5 seconds
(two cores, AMD EPYC, SmolLM2-135M)."""
MAX_GAP = 0.5
"""Seconds that they may take at most, however many prompts wait."""
LEAST, FIRST, MOST = 32, 64, 4096
"""Positions of one prompt. Below the least a pass costs what its weights cost to read, and would only come more often."""
SMOOTHING = 0.3


class PrefillBudget:
    """Learns from the passes that were made: the share of each prompt that waits shrinks when they took longer than they
    may, and grows when they were full and took less.

    Streams slow down as more prompts wait: with one share for all of them, prompts that arrive faster than it is computed
    would wait ever longer.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._share = float(FIRST)
        self._decode_seconds: float | None = None
        self._rate: float | None = None
        """Prompt positions a second."""
        self._prompts = 1

    def positions(self, prompts: int, streams: int) -> int:
        """Returns the budget of the next pass, for which `streams` wait; `prompts` wait for their first token."""
        self._prompts = max(prompts, 1)
        if not streams:
            return self._limits.idle_prefill_tokens
        most = float(min(self._limits.prefill_tokens * self._prompts, self._limits.idle_prefill_tokens))
        if self._rate is not None:
            most = min(most, max(self._rate * MAX_GAP, LEAST))
        return int(min(self._share * self._prompts, most))

    def alone(self, positions: int) -> float:
        """Returns the seconds that so many positions of a prompt would take if no other was computed; 0 if not known yet."""
        return positions / self._rate if self._rate else 0.0

    def observe(self, positions: int, streams: int, seconds: float) -> None:
        """Notes how long a pass took with so many prompt positions and decoding streams."""
        if not positions:
            self._decode_seconds = _smoothed(self._decode_seconds, seconds)
            return
        if streams:
            # where a slow pass has raised the mean of decode passes: a tenth, or the rate would be without bound
            seconds = max(seconds - (self._decode_seconds or 0.0), 0.1 * seconds)
        if positions >= LEAST:
            self._rate = _smoothed(self._rate, positions / seconds)
        if not streams or self._decode_seconds is None:
            return
        allowed = STALL * self._prompts * self._decode_seconds / seconds
        share = positions / self._prompts
        if allowed < 1.0 or share >= 0.75 * self._share:
            reached = min(self._share, share)
            self._share = min(max(reached * min(max(allowed, 0.5), 1.5), LEAST), MOST)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + SMOOTHING * (now - before)
