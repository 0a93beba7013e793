"""A reader's verdicts are recorded for the answer that was steered up, wherever it was shown."""

from typing import Any

import pytest

from benchmarks.quality.blind.reading import distinguished, is_of, record, sheets, shown, swapped
from steering.concepts.measured import BlindReading

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"prompt {n}", "up": f"glad {n}", "down": f"sad {n}", "read": None} for n in range(12)
]


def test_answers_are_shown_in_either_order_without_a_label() -> None:
    text = shown("sentiment", "sentiment", PAIRS)
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


def test_the_controls_are_read_on_sheets_of_their_own_and_counted_in_either_direction() -> None:
    entry: dict[str, Any] = {"other": "toxicity"}
    entry |= {
        kind: [{**pair, "scores": [1.0, 0.0], "read_other": None} for pair in PAIRS] for kind in ("pairs", "random")
    }
    found = {"sentiment": entry}
    right = ["B" if swapped(pair) else "A" for pair in PAIRS]
    wrong = ["A" if word == "B" else "B" for word in right]
    record(found, {"sentiment": right, "sentiment/other": wrong, "sentiment/random": right[:6] + wrong[6:]})
    assert distinguished(entry) == {"pairs": 12, "model": 12, "reader": 12, "other": 12, "random": 6}
    assert "rude, dismissive" in shown("sentiment/other", *sheets(found)["sentiment/other"][:2])
    assert BlindReading(10, 10, 9, other=8, random=6).passed
    assert not BlindReading(10, 10, 9, other=9, random=6).passed


def test_pairs_of_other_strengths_or_layers_than_those_measured_are_no_reading_of_them() -> None:
    entry = {"strengths": [0.0, -1.8], "layers": [16]}
    measured: dict[str, Any] = {"strength": None, "negative": [-1.8, -1.2], "layers": [16]}
    assert is_of(entry, measured)
    for change in ({"strength": [0.5, 0.5]}, {"negative": [-1.2, -1.2]}, {"layers": [14]}):
        assert not is_of(entry, measured | change)


def test_both_verdicts_are_counted() -> None:
    pairs = [
        {"scores": [1.0, 0.0], "read": True},
        {"scores": [0.0, 0.5], "read": True},
        {"scores": [2.0, 1.0], "read": False},
    ]
    assert distinguished({"pairs": pairs}) == {"pairs": 3, "model": 2, "reader": 2}
