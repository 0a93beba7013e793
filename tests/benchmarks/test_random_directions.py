"""Random directions of another layer, strengths or data are measured anew, and the page names the layer of those that were measured."""

from pathlib import Path

from benchmarks.quality.random_directions import CONCEPT, JUDGED, RESULT, about_of, known_scores, random_table
from benchmarks.quality.recording import read_results, write_items, write_results
from steering.concepts.measured import measurements
from steering.model.embedded import EMBEDDED_MODEL
from steering.schemas.evaluation import ScoresAnswer
from tests.steering.workflows.linear import LinearEngine

STRENGTHS = (1.0, -1.0, 2.0)


def test_scores_of_another_layer_or_other_strengths_are_not_taken_for_known(tmp_path: Path) -> None:
    engine, scores, result = LinearEngine(), tmp_path / "random.sentiment.jsonl", tmp_path / "random.json"
    rows = [ScoresAnswer(arm="random", direction=3, strength=1.0, scores=[[0.5]], surprises=[[1.0]])]
    about = about_of(engine, (2,), STRENGTHS)
    write_items("random", "sentiment", rows, tmp_path)
    assert known_scores(about, scores, result) == [], "nothing says what they are of"
    write_results(result, {**about, JUDGED: {"directions": 1}})
    assert known_scores(about, scores, result) == rows
    for other in (about_of(engine, (1,), STRENGTHS), about_of(engine, (2,), (1.02, -1.02)), about | {"data": "0"}):
        assert known_scores(other, scores, result) == []


def test_the_page_names_the_layer_that_was_measured(tmp_path: Path) -> None:
    found, path = read_results(RESULT), tmp_path / "random.json"
    (now,) = measurements()[EMBEDDED_MODEL][CONCEPT].layers
    assert random_table(path) == "Not measured yet.\n"
    write_results(path, {**found, "layers": [3]})
    assert f"random directions at layer 3 of {EMBEDDED_MODEL}" in random_table(path)
    assert f"The layer of `{CONCEPT}` is {now} now" in random_table(path)
    write_results(path, {**found, "layers": [now]})
    assert "now" not in random_table(path)
