"""PrefillBudget: how many prompt positions to compute between two decode passes, so that no stream waits for long."""

from math import inf

from steering.engine.options import EngineLimits

STALL = 2.2
"""A prompt pass between two decode passes may take as many times as long as one of them."""
LEAST, FIRST, MOST = 32, 64, 4096
"""Positions. Below the least a pass costs what its weights cost to read, and would only come more often."""
SMOOTHING = 0.3


class PrefillBudget:
    """Learns from the passes that were made: the budget shrinks when they took longer than they may, and grows when
    they were full and took less."""

    def __init__(self) -> None:
        self._positions = float(FIRST)
        self._decode_seconds: float | None = None
        self._learning = False

    def budget(self, limits: EngineLimits, prompts: int, streams: int) -> int:
        """Positions of the next prompt pass, for which `streams` wait; `prompts` wait for their first token.

        Where more wait to begin than to go on, as when many requests come at once, the pass is larger accordingly.
        """
        self._learning = 0 < prompts <= streams
        if self._learning:
            return min(int(self._positions), limits.prefill_tokens)
        weight = prompts / streams if streams else inf
        return int(min(weight * limits.prefill_tokens, limits.idle_prefill_tokens))

    def decoded(self, seconds: float) -> None:
        """A decode pass took so long."""
        before = seconds if self._decode_seconds is None else self._decode_seconds
        self._decode_seconds = before + SMOOTHING * (seconds - before)

    def computed(self, positions: int, seconds: float) -> None:
        """The prompt pass of that budget took so long."""
        if not self._learning or self._decode_seconds is None:
            return
        allowed = STALL * self._decode_seconds / seconds
        if allowed < 1.0 or positions >= 0.75 * self._positions:
            reached = min(self._positions, float(positions))
            self._positions = min(max(reached * min(max(allowed, 0.5), 1.5), LEAST), MOST)
