"""PrefillBudget: how many prompt positions a pass computes, so that no running stream waits for long."""

from steering.engine.options import EngineLimits

STALL = 2.2
"""The prompt positions of a pass may take as many times as long as a pass without any."""
MAX_GAP = 0.5
"""Seconds that they may take at most, however many prompts wait to begin."""
LEAST, FIRST, MOST = 32, 64, 4096
"""Positions. Below the least a pass costs what its weights cost to read, and would only come more often."""
SMOOTHING = 0.3


class PrefillBudget:
    """Learns from the passes that were made: the budget shrinks when they took longer than they may, and grows when
    they were full and took less."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._positions = float(FIRST)
        self._decode_seconds: float | None = None
        self._rate: float | None = None
        """Prompt positions a second."""
        self._learning = False

    def positions(self, prompts: int, streams: int) -> int:
        """Returns the budget of the next pass, for which `streams` wait; `prompts` wait for their first token.

        Where more wait to begin than to go on, as when many requests come at once, it is larger accordingly, up to
        MAX_GAP at the measured speed.
        """
        self._learning = 0 < prompts <= streams
        if not streams:
            return self._limits.idle_prefill_tokens
        if self._learning:
            return min(int(self._positions), self._limits.prefill_tokens)
        most = min(prompts / streams * self._limits.prefill_tokens, self._limits.idle_prefill_tokens)
        if self._rate is not None:
            most = min(most, max(self._rate * MAX_GAP, LEAST))
        return int(most)

    def observe(self, positions: int, streams: int, seconds: float) -> None:
        """Notes how long a pass took with so many prompt positions and decoding streams."""
        if not positions:
            self._decode_seconds = _smoothed(self._decode_seconds, seconds)
            return
        if streams:
            seconds = max(seconds - (self._decode_seconds or 0.0), 1e-6)
        if positions >= LEAST:
            self._rate = _smoothed(self._rate, positions / seconds)
        if not (self._learning and streams) or self._decode_seconds is None:
            return
        allowed = STALL * self._decode_seconds / seconds
        if allowed < 1.0 or positions >= 0.75 * self._positions:
            reached = min(self._positions, float(positions))
            self._positions = min(max(reached * min(max(allowed, 0.5), 1.5), LEAST), MOST)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + SMOOTHING * (now - before)
