"""A blind reading of a starter concept stays as long as its answers are those of the measured layer and strengths."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.ranges import add_ranges
from benchmarks.quality.recording import read_results, write_results
from tests.steering.workflows.linear import LinearEngine

BLIND = {"pairs": 10, "model": 10, "reader": 9, "other": 4, "random": 5}
FOUND: dict[str, Any] = {"dataset": "d", "layers": [2], "strength": (1.0, 2.0), "negative": None, "prompts": 24}


def added(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Adds a result, and returns the concept as the file has it."""
    engine = LinearEngine()
    add_ranges(engine, "sentiment", found, path)
    concept: dict[str, Any] = read_results(path)[engine.info.fingerprint]["concepts"]["sentiment"]
    return concept


@pytest.fixture
def read(tmp_path: Path) -> Path:
    """A file with a concept whose answers were read."""
    path, engine = tmp_path / "measured.json", LinearEngine()
    assert "blind" not in added(path, FOUND)
    content = read_results(path)
    content[engine.info.fingerprint]["concepts"]["sentiment"]["blind"] = BLIND
    write_results(path, content)
    return path


def test_a_reading_stays_where_layer_and_strengths_are_the_same(read: Path) -> None:
    concept = added(read, {**FOUND, "prompts": 96})
    assert concept["blind"] == BLIND
    assert concept["prompts"] == 96


@pytest.mark.parametrize(
    "change", [{"layers": [1]}, {"strength": (1.0, 1.0)}, {"negative": (-1.0, -1.0)}, {"dataset": "e"}]
)
def test_a_reading_of_other_answers_is_dropped(read: Path, change: dict[str, Any]) -> None:
    assert "blind" not in added(read, FOUND | change)
