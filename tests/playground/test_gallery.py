"""The saved answers that come with the page: what was measured of them, and the ranges of the concepts today."""

import json
from typing import Any

import pytest

from steering.concepts.measured import DISTINGUISHED, measurement_of
from tests.steering.lab.test_evidence import MODEL
from tools.gallery import GALLERY, PAIRS, SAMPLES, SHARES, passes

PAGE: dict[str, Any] = json.loads(GALLERY.read_text(encoding="utf-8"))


@pytest.mark.parametrize("item", PAGE["items"], ids=lambda item: f"{item['vector']}: {item['prompt']}")
def test_a_saved_dial_lies_in_the_measured_range_and_passed_twice_and_a_second_model_tells_its_ends_apart(
    item: dict[str, Any],
) -> None:
    measured = measurement_of(item["vector"], MODEL)
    assert measured is not None
    high, low = (max(map(abs, side), default=0.0) for side in (measured.strength or (), measured.negative or ()))
    stops = item["stops"]
    expected = {round(share * (high if share > 0 else low), 2) for share in SHARES}
    sides = {stop["strength"] > 0 for stop in stops if stop["strength"]}
    assert [stop["strength"] for stop in stops] == sorted(one for one in expected if not one or (one > 0) in sides)
    assert PAGE["samples"] == SAMPLES
    ends = [stop for stop in (stops[0], stops[-1]) if stop["strength"]]
    assert [stop["strength"] for stop in item["again"]] == [stop["strength"] for stop in ends]
    assert all(map(passes, [*ends, *item["again"]]))
    assert item["apart"]["pairs"] == PAIRS
    assert item["apart"]["second"] >= DISTINGUISHED * PAIRS


def test_the_first_saved_dial_has_both_sides() -> None:
    stops = PAGE["items"][0]["stops"]
    assert stops[0]["strength"] < 0 < stops[-1]["strength"]
