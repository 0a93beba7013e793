"""Computes metrics from the arrival times of tokens. Imports only the standard library, since peers use it too."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any


def stream_metrics(start: float, arrivals: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Returns metrics of streams that started together at `start`. arrivals: per stream, the times of its tokens in seconds.

    first_token: median over streams. per_token: median over streams of the mean time per token after the first.
    decode_per_second: tokens per second after the last stream's first token. None for streams of a single token.
    """
    tokens = sum(len(times) for times in arrivals)
    end = max(times[-1] for times in arrivals)
    metrics: dict[str, Any] = {
        "seconds": end - start,
        "tokens": tokens,
        "tokens_per_second": tokens / (end - start),
        "first_token": median(times[0] - start for times in arrivals),
        "per_token": None,
        "decode_per_second": None,
    }
    if all(len(times) > 1 for times in arrivals):
        decoding = max(times[0] for times in arrivals)
        metrics["per_token"] = median((times[-1] - times[0]) / (len(times) - 1) for times in arrivals)
        if end > decoding:
            later = sum(time > decoding for times in arrivals for time in times)
            metrics["decode_per_second"] = later / (end - decoding)
    return metrics


def load_metrics(starts: Sequence[float], arrivals: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Returns metrics of streams that started at different times: first token and gaps between tokens, in seconds.

    offered_per_second: all tokens over the time in which the streams started, the tokens per second of a server that answers at
    once. None where all started together.
    """
    first = [times[0] - start for start, times in zip(starts, arrivals, strict=True)]
    gaps = [after - before for times in arrivals for before, after in pairwise(times)]
    tokens = sum(len(times) for times in arrivals)
    seconds = max(times[-1] for times in arrivals) - min(starts)
    span = max(starts) - min(starts)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "offered_per_second": tokens / span if span else None,
        "first_token": median(first),
        "first_token_p99": percentile(first, 0.99),
        "gap_median": median(gaps) if gaps else None,
        "gap_p99": percentile(gaps, 0.99) if gaps else None,
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
