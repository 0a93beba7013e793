"""What the pages say of a concept follows from its points: the furthest strength that holds, or plainly that none does."""

from typing import Any

from benchmarks.quality.page import best_point, table


def point(strength: float, score: float) -> dict[str, Any]:
    return {"strength": strength, "concept_score": score}


POINTS = [point(-1.0, -0.4), point(0.0, 0.0), point(0.5, 0.2), point(1.0, 0.5), point(2.0, 0.9)]


def test_the_furthest_strength_within_the_range_that_holds_is_shown() -> None:
    assert best_point({"recommended": [0.5, 1.0], "negative": None, "points": POINTS}) == point(1.0, 0.5)


def test_a_strength_below_zero_counts_as_one_above() -> None:
    assert best_point({"recommended": None, "negative": [-1.0, -1.0], "points": POINTS}) == point(-1.0, -0.4)
    assert best_point({"recommended": [0.5, 0.5], "negative": [-1.0, -1.0], "points": POINTS}) == point(-1.0, -0.4)


def test_a_concept_without_such_a_range_falls_short() -> None:
    assert best_point({"recommended": None, "negative": None, "points": POINTS}) is None


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
