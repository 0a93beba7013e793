"""The mixed load has the stated distribution, and metrics of streams have their planted values."""

import math
from itertools import pairwise
from statistics import mean, median

import pytest

from benchmarks.bench import fastest, shortest
from benchmarks.profile import FULL, Profile
from benchmarks.stream_timing import load_metrics, percentile, stream_metrics
from benchmarks.workload import TOKENS_PER_WORD, mixed_requests

MANY = Profile(mixed_requests=4000)
RATE = 6.0


def test_requests_arrive_at_the_stated_rate_with_lengths_within_the_bounds() -> None:
    requests = mixed_requests(MANY, RATE, 1)
    gaps = [b["at"] - a["at"] for a, b in pairwise(requests)]
    assert mean(gaps) == pytest.approx(1 / RATE, rel=0.1)
    assert median(gaps) == pytest.approx(math.log(2) / RATE, rel=0.1), "exponential"
    words = [len(request["prompt"]) / TOKENS_PER_WORD for request in requests]
    assert [min(words), max(words)] == pytest.approx([8, 900], abs=1)
    assert median(words) == pytest.approx(math.sqrt(8 * 900), rel=0.1)
    answers = [request["new_tokens"] for request in requests]
    assert (min(answers), max(answers)) == (8, 250)


def test_a_seed_gives_the_same_requests() -> None:
    assert mixed_requests(FULL, RATE, 3) == mixed_requests(FULL, RATE, 3) != mixed_requests(FULL, RATE, 4)
    assert len(mixed_requests(FULL, RATE, 3)) == 48
    slow, fast = (mixed_requests(FULL, rate, 3) for rate in (RATE, 2 * RATE))
    assert [one["at"] for one in slow] == pytest.approx([2 * one["at"] for one in fast])
    assert [len(one["prompt"]) for one in slow] == [len(one["prompt"]) for one in fast]
    assert not any(a["prompt"] == b["prompt"] for a, b in zip(slow, fast, strict=True)), (
        "a prefix cache would have them"
    )


def test_metrics_of_streams_that_start_together() -> None:
    found = stream_metrics(10.0, [[11.0, 12.0, 13.0], [12.0, 14.0]])
    assert (found["seconds"], found["tokens"], found["tokens_per_second"]) == (4.0, 5, 1.25)
    assert (found["first_token"], found["per_token"]) == (1.5, 1.5)
    assert found["decode_per_second"] == 1.0, "two tokens in the two seconds after 12.0"


def test_metrics_of_streams_that_start_at_different_times() -> None:
    found = load_metrics([0.0, 2.0], [[1.0, 2.0, 5.0], [5.0]])
    assert (found["seconds"], found["tokens"], found["tokens_per_second"]) == (5.0, 4, 0.8)
    assert found["offered_per_second"] == 2.0, "four tokens, and the last stream starts after two seconds"
    assert load_metrics([1.0, 1.0], [[2.0], [3.0]])["offered_per_second"] is None
    assert (found["first_token"], found["first_token_p99"]) == (2.0, 3.0)
    assert (found["gap_median"], found["gap_p99"]) == (2.0, 3.0)


def test_the_percentile_and_the_fastest_series() -> None:
    assert percentile(range(1, 201), 0.99) == 199
    assert fastest([None, [1.0, 9.0, 2.0], [3.0, 3.0, 3.0]]) == [3.0, 3.0, 3.0]
    assert shortest([None, [1.0, 9.0, 2.0], [3.0, 3.0, 3.0]]) == [1.0, 9.0, 2.0]
    assert fastest([None, []]) is None
    assert shortest([None, []]) is None
