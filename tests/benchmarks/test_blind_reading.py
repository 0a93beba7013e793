"""A reader's verdicts are recorded for the answer that was steered up, wherever it was shown."""

from typing import Any

import pytest

from benchmarks.quality.blind.reading import distinguished, record, shown, swapped

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"prompt {n}", "up": f"glad {n}", "down": f"sad {n}", "read": None} for n in range(12)
]


def test_answers_are_shown_in_either_order_without_a_label() -> None:
    text = shown("sentiment", PAIRS)
    first = [line for line in text.splitlines() if line.startswith("  A:")]
    assert {swapped(pair) for pair in PAIRS} == {True, False}
    assert first == [f"  A: {pair['down' if swapped(pair) else 'up']!r}" for pair in PAIRS]
    assert "up" not in text


def test_a_perfect_reader_tells_every_pair_and_an_inverted_one_none() -> None:
    perfect = ["B" if swapped(pair) else "A" for pair in PAIRS]
    found = {"sentiment": {"pairs": [dict(pair) for pair in PAIRS]}}
    record(found, {"sentiment": perfect})
    assert [pair["read"] for pair in found["sentiment"]["pairs"]] == [True] * 12
    record(found, {"sentiment": ["A" if word == "B" else "B" for word in perfect]})
    assert [pair["read"] for pair in found["sentiment"]["pairs"]] == [False] * 12


def test_verdicts_of_another_count_are_refused() -> None:
    with pytest.raises(ValueError, match="sentiment needs 12 verdicts"):
        record({"sentiment": {"pairs": PAIRS}}, {"sentiment": ["A"]})


def test_both_verdicts_are_counted() -> None:
    pairs = [
        {"scores": [1.0, 0.0], "read": True},
        {"scores": [0.0, 0.5], "read": True},
        {"scores": [2.0, 1.0], "read": False},
    ]
    assert distinguished(pairs) == {"pairs": 3, "model": 2, "reader": 2}
