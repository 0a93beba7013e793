"""Make from other sources in a browser: a feature of a dictionary, and a vector carried over from a second model."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import torch
from playwright.sync_api import Locator, Route, expect

from tests.embedded.server_process import ServerProcess
from tests.families import D_MODEL
from tests.playground.conftest import DICTIONARY, JOB, SECOND, SECONDS, Visit
from tests.playground.test_places import PAIRS
from tests.steering.lab.planted_folder import planted_folder

pytestmark = [pytest.mark.embedded, pytest.mark.browser]

FEATURE = 5
ANCHORS = [
    f"The {thing} is {place}."
    for thing in ("box", "key", "map", "cup")
    for place in ["here", "there", "up", "down", "in", "out"]
]


@pytest.fixture(scope="module")
def layer(server: ServerProcess) -> int:
    """The layer of the server's dictionary, in which one feature is the direction of sentiment there."""
    vector = f"{server.url}/v1/vectors/sentiment"
    found: int = httpx2.get(vector, timeout=SECONDS).json()["recommended"]["layers"][0]
    direction = httpx2.get(f"{vector}/directions?layers={found}", timeout=SECONDS).json()[str(found)]
    planted_folder(server.folder / DICTIONARY, len(direction), {FEATURE: torch.tensor(direction)}, found)
    return found


@pytest.fixture
def made(server: ServerProcess) -> Iterator[str]:
    """The name of a vector that a test makes; it is deleted afterwards."""
    yield "made-here"
    httpx2.delete(f"{server.url}/v1/vectors/made-here", timeout=SECONDS)


def source(wide: Visit, name: str) -> None:
    """Opens Make with one of its sources."""
    wide.open("#/make")
    wide.page.get_by_role("button", name=name).click()


def search(wide: Visit) -> Locator:
    """Searches, and returns the features that were found."""
    wide.page.get_by_role("button", name="Search features").click()
    wide.ended()
    return wide.page.get_by_role("region", name="Features").get_by_role("listitem")


def test_a_feature_of_a_dictionary_is_found_and_becomes_a_vector(wide: Visit, layer: int, made: str) -> None:
    source(wide, "Dictionary")
    listed = wide.page.get_by_role("list", name="Dictionaries")
    expect(listed.get_by_role("listitem")).to_contain_text([f"{DICTIONARY} layer {layer}", "Cannot be used"])
    wide.page.get_by_label("Texts that show the concept").fill("What a lovely day!\nI adore it.")
    wide.page.get_by_text("How many, and only those that steer").click()
    wide.page.get_by_label("Output score of at least").fill("0")
    expect(search(wide).first).to_contain_text("output score")
    wide.page.get_by_role("button", name="Near a vector").click()
    wide.page.get_by_role("combobox", name="Vector").select_option("sentiment")
    wide.page.get_by_label("Output score of at least").fill("")
    wide.page.get_by_label("How many features").fill("4")
    features = search(wide)
    expect(features).to_have_count(4)
    expect(features.first).to_contain_text(f"feature {FEATURE}+1.000")
    features.first.get_by_role("button").click()
    keep = wide.page.get_by_role("form", name="Make it a vector")
    expect(keep.get_by_label("Name of the vector")).to_have_value(f"feature-{FEATURE}")
    keep.get_by_label("Name of the vector").fill(made)
    wide.inspect("make-dictionary")
    keep.get_by_role("button", name="Make a vector of it").click()
    quality = wide.page.get_by_role("region", name="Quality")
    expect(quality).to_contain_text(f"{made}@")
    quality.get_by_role("button", name="Steer with it").click()
    expect(wide.page.get_by_label(f"Strength of {made}")).to_be_visible()


def shorten(route: Route) -> None:
    """Sends a transfer on, whose effect is measured on a few short answers: the page shows what the server finds, however much that is."""
    body = route.request.post_data_json
    assert isinstance(body, dict)
    if body.get("effect") is not None:
        body["effect"] |= {"prompts": 2, "max_tokens": 4}
    route.continue_(post_data=body)


def carry_over(wide: Visit, made: str) -> Locator:
    """Starts the transfer, and returns its loss as it is shown."""
    wide.page.get_by_label("Name", exact=True).fill(made)
    wide.page.get_by_role("button", name="Carry it over").click()
    return wide.page.get_by_role("region", name="Loss of the transfer")


def test_a_vector_is_carried_over_from_another_model_and_its_loss_is_shown(
    wide: Visit, made: str, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.csv"
    with pairs.open("w", encoding="utf-8", newline="") as output:
        csv.writer(output).writerows(PAIRS)
    wide.page.route("**/v1/vectors/transfer*", shorten)
    source(wide, "Another model")
    wide.page.get_by_label("Pairs of the concept").select_option(label="my pairs")
    wide.page.get_by_label("Add a CSV or JSONL file").set_input_files(pairs)
    wide.page.get_by_text("Layers, texts that both models read").click()
    wide.page.get_by_label("Layer of the second model").fill("1")
    wide.page.get_by_label("Layer of this model").fill("18")
    wide.page.get_by_label("Texts that both models read").fill("\n".join(ANCHORS))
    wide.page.get_by_label("Measure how far it steers, too").check()
    wide.page.get_by_label("Compared with").select_option("sentiment")
    shown = carry_over(wide, made)
    expect(shown).to_contain_text(f"From layer 1 of {SECOND} to layer 18", timeout=JOB)
    expect(shown).to_contain_text("Found in this model: sentiment@")
    carried = wide.vector(made)["provenance"]["loss"]["auroc"]["transferred"]
    expect(shown.get_by_role("listitem").nth(2)).to_contain_text(f"carried over{carried['mean']:.2f} [")
    wide.inspect("make-transfer")

    file = tmp_path / "axis.json"
    axis = {"name": "axis", "model": SECOND, "directions": {str(one): [1.0] + [0.0] * (D_MODEL - 1) for one in (0, 2)}}
    file.write_text(json.dumps(axis), encoding="utf-8")
    wide.page.get_by_role("button", name="From a vector file").click()
    wide.page.get_by_label("Open a vector file").set_input_files(file)
    expect(wide.page.get_by_text(f"axis of {SECOND}")).to_be_visible()
    wide.page.get_by_label("Its layer").select_option("2")
    shown = carry_over(wide, made)
    expect(shown).to_contain_text(f"From layer 2 of {SECOND}", timeout=JOB)
    wide.page.keyboard.press("5")
    wide.page.locator(".card", has_text=made).click()
    expect(wide.page.get_by_role("dialog")).to_contain_text("Loss of the transfer")
    wide.inspect("library-transfer")
