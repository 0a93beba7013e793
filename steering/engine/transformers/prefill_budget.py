"""PrefillBudget: how many prompt positions a pass computes, so that no running stream waits for long."""

from steering.engine.options import EngineLimits

LIVE_SECONDS, BACKGROUND_SECONDS = 0.25, 0.15
"""How long the prompt positions of a pass may take while streams run; background ones delay them less.

Larger passes read the weights less often and have longer gaps. Two cores (AMD EPYC, SmolLM2-135M), with 0.4 / 0.25 / 0.15 s, in turns: the mixed
load of benchmarks/ takes as long with each; its first tokens come after 0.30 / 0.30 / 0.34 s at p99; when a prompt of 2,000 tokens
arrives among 8 streams, their p99 gap is 0.33 / 0.23 / 0.19 s.
"""
LEAST, FIRST = 32, 256
"""Positions of a pass: at least, since a smaller one costs what its weights cost to read; and before the rate is known."""
MEMORY = 2048
"""The rate is an exponential mean over about so many positions. A pass weighs by its size, since positions of small ones take longer."""
SMOOTHING = 0.3


class PrefillBudget:
    """Learns how many prompt positions the device computes in a second, and gives a pass as many as take the time that they may."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._decode_seconds: float | None = None
        self._rate: float | None = None

    def positions(self, streams: int, *, background: bool) -> int:
        """Returns how many positions the next pass computes, for which `streams` wait."""
        if not streams:
            return self._limits.idle_prefill_tokens
        seconds = BACKGROUND_SECONDS if background else LIVE_SECONDS
        allowed = FIRST if self._rate is None else max(int(self._rate * seconds), LEAST)
        return min(allowed, self._limits.prefill_tokens, self._limits.idle_prefill_tokens)

    def alone(self, positions: int) -> float:
        """Returns the seconds that so many positions of a prompt would take if no other was computed; 0 if not known yet."""
        return positions / self._rate if self._rate else 0.0

    def observe(self, positions: int, streams: int, seconds: float) -> None:
        """Notes how long a pass took with so many prompt positions and decoding streams."""
        if not positions:
            before = self._decode_seconds
            self._decode_seconds = seconds if before is None else before + SMOOTHING * (seconds - before)
            return
        if streams:
            # where a slow pass has raised the mean of decode passes: a tenth, or the rate would be without bound
            seconds = max(seconds - (self._decode_seconds or 0.0), 0.1 * seconds)
        if positions < LEAST:
            return
        now, weight = positions / seconds, min(positions / MEMORY, 1.0)
        self._rate = now if self._rate is None else self._rate + weight * (now - self._rate)
