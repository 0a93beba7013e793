"""The page of coverage states the pooled shares, the lowest row, and how the run relates to the present folds."""

from pathlib import Path
from typing import Any

from benchmarks.quality.coverage import FOLDED, coverage_table
from benchmarks.quality.recording import write_results


def row(form: str, held: float) -> dict[str, Any]:
    about = {"topics": 10, "texts_a_side": 40, "fresh_above": 1, "fresh_below": 0, "width": 0.4}
    return {"form": form, "runs": 60, "held": held, "interval": [0.8, 1.0], **about}


def test_shares_are_pooled_by_form_and_the_lowest_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "coverage.json"
    assert coverage_table(path) == "Not simulated yet.\n"
    rows = [row("pairs", 0.9), row("pairs", 1.0), row("lists", 0.95)]
    found = {"d_model": 576, "layers": 5, "seed": 0, "data": "1a", "date": "2026-11-30", "rows": rows}
    write_results(path, found)
    (*_, line) = coverage_table(path).splitlines()
    assert line.startswith(
        "95.0% of all: 95.0% of pairs, 95.0% of lists, with 60 draws a row, of which the lowest has 90.0%; "
    )
    assert "before the folds of cross-validation changed" in line
    write_results(path, {**found, "date": FOLDED})
    assert "before the folds" not in coverage_table(path)
