"""Methods are compared at layers that the vector has, and the furthest counts only where its text holds."""

from typing import Any

from benchmarks.quality.pages.gates import side_effect_cell
from benchmarks.quality.pages.methods import furthest_method
from benchmarks.quality.reports.methods import spread


def entry(moved: float, utility: bool) -> dict[str, Any]:
    control = {"passed": True, "checks": [{"name": "shift", "value": moved}]}
    return {"seeds": [{"gates": {"control": control, "utility": {"passed": utility}}}]}


def test_a_dose_is_shared_with_the_layers_that_the_vector_has() -> None:
    assert spread(12, range(30)) == (10, 12, 14)
    assert spread(1, range(30)) == (1, 3)
    assert spread(12, {12: None}) == (12,)


def test_the_furthest_method_is_one_that_keeps_the_text_intact() -> None:
    found = {"add": entry(0.3, True), "broken": entry(0.9, False), "probe": entry(0.2, True)}
    assert furthest_method(found) == "add"
    assert furthest_method({"broken": entry(0.9, False), "none": {"seeds": [{"gates": {}}]}}) is None


def test_a_side_effect_is_bold_where_no_seed_could_be_without_it() -> None:
    certain = {"mean": 0.2, "interval": [0.1, 0.3]}
    assert side_effect_cell([certain, {"mean": 0.1, "interval": [0.05, 0.15]}]) == "**+0.15**"
    assert side_effect_cell([certain, {"mean": 0.1, "interval": [-0.05, 0.25]}]) == "+0.15"
    assert side_effect_cell([certain, {"mean": -0.2, "interval": [-0.3, -0.1]}]) == "+0.00"
    assert side_effect_cell([{"mean": -0.2, "interval": [-0.3, -0.1]}]) == "**-0.20**"
    assert side_effect_cell([certain, {"mean": 0.4, "interval": None}]) == "+0.30"
    assert side_effect_cell([]) == ""
