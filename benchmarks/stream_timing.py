"""Arrival times of streams that ran together, in the figures that are reported. Standard library alone: peers use it too."""

from collections.abc import Sequence
from statistics import median
from typing import Any


def figures(start: float, arrivals: Sequence[Sequence[float]]) -> dict[str, Any]:
    """arrivals: of every stream, the times of its tokens; start: when all were asked, on the same clock, in seconds.

    seconds: until the last token. tokens_per_second: all of them over that. first_token: median over streams.
    per_token: median over streams of the mean time a token after the first. decode_per_second: tokens a second once
    every stream has begun, prompts left out. None where a stream has a single token.
    """
    tokens = sum(len(times) for times in arrivals)
    end = max(times[-1] for times in arrivals)
    found: dict[str, Any] = {
        "seconds": end - start,
        "tokens": tokens,
        "tokens_per_second": tokens / (end - start),
        "first_token": median(times[0] - start for times in arrivals),
        "per_token": None,
        "decode_per_second": None,
    }
    if all(len(times) > 1 for times in arrivals):
        begun = max(times[0] for times in arrivals)
        found["per_token"] = median((times[-1] - times[0]) / (len(times) - 1) for times in arrivals)
        if end > begun:
            found["decode_per_second"] = sum(time > begun for times in arrivals for time in times) / (end - begun)
    return found
