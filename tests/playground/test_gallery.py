"""The saved answers that come with the page: what was measured of them, and the ranges of the concepts today."""

import json
from typing import Any

import pytest

from steering.concepts.measured import DISTINGUISHED, measurements
from steering.model.embedded import EMBEDDED_MODEL
from tools.gallery import GALLERY, MORE, PAIRS, PASSED, PROMPTS, SAMPLES, SHARES, is_whole, passes

PAGES: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in GALLERY.glob("*.json")
}
ITEMS = [
    pytest.param(model, item, id=f"{model}: {item['prompt']}")
    for model, page in PAGES.items()
    for item in page["items"]
]


@pytest.mark.parametrize(("model", "item"), ITEMS)
def test_a_saved_dial_lies_in_the_measured_range_and_passed_twice_and_a_second_model_tells_its_ends_apart(
    model: str, item: dict[str, Any]
) -> None:
    measured = measurements()[model][item["vector"]]
    high, low = (max(map(abs, side), default=0.0) for side in (measured.strength or (), measured.negative or ()))
    stops = item["stops"]
    expected = {round(share * (high if share > 0 else low), 2) for share in SHARES}
    sides = {stop["strength"] > 0 for stop in stops if stop["strength"]}
    assert sides
    assert [stop["strength"] for stop in stops] == sorted(one for one in expected if not one or (one > 0) in sides)
    ends = [stop for stop in (stops[0], stops[-1]) if stop["strength"]]
    assert [stop["strength"] for stop in item["again"]] == [stop["strength"] for stop in ends]
    assert all(map(passes, [*ends, *item["again"]]))
    assert all(is_whole("".join(text for text, _ in stop["words"])) for stop in stops)
    assert item["apart"]["pairs"] == PAIRS
    assert item["apart"]["second"] >= DISTINGUISHED * PAIRS


@pytest.mark.parametrize(("model", "page"), PAGES.items(), ids=PAGES)
def test_a_page_has_what_passed_of_its_candidates(model: str, page: dict[str, Any]) -> None:
    assert page["model"] == model
    assert page["samples"] == SAMPLES
    candidates = [*PROMPTS, *MORE.get(model, ())]
    items = [(item["vector"], item["prompt"]) for item in page["items"]]
    assert items
    assert set(items) <= set(candidates)
    if "tried" in page:
        results = {(one["vector"], one["prompt"]): one["result"] for one in page["tried"]}
        assert list(results) == candidates[: len(results)]
        assert {one for one, result in results.items() if result == PASSED} == set(items)


def test_the_first_saved_dial_of_the_embedded_model_has_both_sides() -> None:
    stops = PAGES[EMBEDDED_MODEL]["items"][0]["stops"]
    assert stops[0]["strength"] < 0 < stops[-1]["strength"]
