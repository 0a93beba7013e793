"""Make, Space, Read and Library in a browser, each task as a person does it."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.playground.conftest import JOB, STORY, Visit

pytestmark = [pytest.mark.embedded, pytest.mark.browser]

SUBJECTS = ("soup", "train", "film", "garden", "hotel", "concert", "walk", "meeting")
PAIRS = [
    (f"The {subject} was {good} today, and I enjoyed it.", f"The {subject} was {bad} today, and I hated it.")
    for subject in SUBJECTS
    for good, bad in (("wonderful", "awful"), ("lovely", "dreadful"))
]


def test_a_vector_is_made_from_a_file_and_its_card_shows_the_layers(wide: Visit, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    rows = [f'"{positive}","{negative}"' for positive, negative in PAIRS]
    table.write_text("positive,negative\n" + "\n".join(rows), encoding="utf-8")
    wide.open("#/make")
    wide.page.get_by_label("Add a CSV or JSONL file").set_input_files(table)
    expect(wide.page.get_by_label("positive 16")).to_have_value(PAIRS[15][0])
    wide.page.get_by_label("Name", exact=True).fill("joy")
    wide.page.get_by_role("button", name="Find the vector").click()
    quality = wide.page.get_by_role("region", name="Quality")
    expect(quality).to_contain_text("joy@", timeout=JOB)
    expect(quality.locator("figure.chart")).to_have_count(1)
    expect(quality).to_contain_text("ranks a positive text above a negative one")
    assert wide.violations() == []
    wide.screenshot("make-result")
    quality.get_by_role("button", name="Steer with it").click()
    expect(wide.page.get_by_label("Strength of joy")).to_be_visible()


def test_warnings_appear_while_pairs_are_typed_and_a_bad_file_keeps_what_was_typed(wide: Visit, tmp_path: Path) -> None:
    wide.open("#/make")
    wide.page.get_by_label("positive 1").fill("The cat purrs softly")
    wide.page.get_by_label("negative 1").fill("Engines need petrol")
    expect(wide.page.get_by_role("note").filter(has_text="1 pair is few")).to_be_visible()
    expect(wide.page.get_by_role("note").filter(has_text="same topic")).to_be_visible()
    broken = tmp_path / "pairs.jsonl"
    broken.write_text('{"positive": "a"}\n', encoding="utf-8")
    wide.page.get_by_label("Add a CSV or JSONL file").set_input_files(broken)
    expect(wide.page.get_by_role("alert")).to_contain_text("Line 1")
    expect(wide.page.get_by_label("positive 1")).to_have_value("The cat purrs softly")


def test_the_map_follows_the_layer_and_a_text_can_be_followed(wide: Visit) -> None:
    wide.open("#/space")
    slider = wide.page.get_by_role("slider", name="Layer")
    wide.ended()
    expect(slider).not_to_have_attribute("aria-valuetext", "input embeddings")
    expect(wide.page.get_by_role("region", name="Separability")).to_contain_text("The best ")
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "input embeddings")
    picture = "document.querySelector('.scatter canvas').toDataURL()"
    before = wide.page.evaluate(picture)
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "layer 0")
    for _ in range(15):
        slider.press("ArrowRight")
    wide.page.wait_for_function(f"before => {picture} !== before", arg=before)  # it is drawn after the slider has moved
    wide.page.get_by_role("list", name="All texts").get_by_role("button").first.click()
    expect(wide.page.get_by_text("Its way through the layers is drawn")).to_be_visible()
    expect(wide.page.get_by_role("region", name="Separability")).to_contain_text("at the input")


def test_the_space_begins_with_a_story_of_four_scenes_and_ends_in_the_tool(wide: Visit) -> None:
    wide.page.add_init_script(f"localStorage.setItem('{STORY}', 'unseen')")
    wide.open("#/space")
    story = wide.page.get_by_role("region", name="Story of latent space")
    story.locator("canvas").wait_for(timeout=JOB)  # the page of a place is loaded when it is opened
    wide.ended()
    pictures: set[str] = set()
    for title in (
        "Words are points",
        "Layer by layer they sort",
        "Here is the arrow",
        "A steered answer takes another way",
    ):
        expect(story.get_by_role("heading")).to_contain_text(title)
        wide.inspect(f"space-story-{len(pictures)}")
        pictures.add(wide.page.evaluate("document.querySelector('.story canvas').toDataURL()"))
        if len(pictures) < 4:
            story.get_by_role("button", name="Next").click()
    expect(story).to_contain_text("Plain answer to")
    assert len(pictures) == 4
    story.get_by_role("button", name="Open the tool").click()
    expect(wide.page.get_by_role("slider", name="Layer")).to_be_visible()


PINCH = """canvas => {
  canvas.setPointerCapture = () => {}; // it takes no pointer that a script has made up
  const { left, top } = canvas.getBoundingClientRect();
  const fire = (type, pointerId, x) =>
    canvas.dispatchEvent(new PointerEvent(type, { pointerId, clientX: left + x, clientY: top + 150, bubbles: true }));
  for (const [pointerId, x] of [[1, 200], [2, 260]]) fire("pointerdown", pointerId, x);
  for (let x = 265; x < 340; x += 5) fire("pointermove", 2, x);
  for (const [pointerId, x] of [[2, 335], [1, 200]]) fire("pointerup", pointerId, x);
}"""
"""Two fingers on the map that move apart."""


def test_the_map_is_enlarged_with_labels_neighbours_and_a_film_strip(wide: Visit) -> None:
    wide.open("#/space")
    wide.ended()
    picture = "document.querySelector('.scatter canvas').toDataURL()"
    before = wide.page.evaluate(picture)
    wide.page.get_by_role("button", name="Closer").click()
    wide.page.get_by_role("button", name="Closer").click()
    wide.page.wait_for_function(f"before => {picture} !== before", arg=before)
    wide.screenshot("space-labels")
    before = wide.page.evaluate(picture)
    wide.page.locator(".scatter canvas").evaluate(PINCH)
    wide.page.wait_for_function(f"before => {picture} !== before", arg=before)
    expect(wide.page.get_by_role("list", name="Selected texts")).to_have_count(0)  # it was no lasso
    wide.page.get_by_role("button", name="Outlines").click()
    wide.page.get_by_role("searchbox", name="Search the texts").fill("harbour")
    texts = wide.page.get_by_role("list", name="All texts").get_by_role("listitem")
    expect(texts).to_have_count(2)  # both sides of one pair
    expect(texts.first).to_contain_text("harbour")
    texts.first.get_by_role("button").click()
    expect(wide.page.get_by_role("list", name="Nearest texts").get_by_role("listitem")).to_have_count(5)
    film = wide.page.get_by_role("list", name="Film strip of the layers").get_by_role("button")
    expect(film).to_have_count(8)
    film.first.click()
    expect(wide.page.get_by_role("slider", name="Layer")).to_have_attribute("aria-valuetext", "input embeddings")
    wide.inspect("space-tool")


def test_the_vector_of_the_texts_is_offered_when_the_library_arrives_after_the_map(wide: Visit) -> None:
    held: list[Route] = []
    arrived = False

    def hold(route: Route) -> None:
        if arrived:
            route.continue_()
        else:
            held.append(route)

    wide.page.route(re.compile(r"/v1/vectors(\?|$)"), hold)
    wide.open("#/space")
    wide.page.get_by_role("button", name="3-D").click()
    expect(wide.page.locator(".scatter canvas")).to_be_visible()
    along = wide.page.get_by_role("button", name="Along the vector", exact=True)
    expect(along).to_have_count(0)
    arrived = True
    for route in held:
        route.continue_()
    along.click()
    wide.ended()
    expect(wide.page.get_by_role("alert")).to_have_count(0)


def test_every_picture_of_the_space_is_drawn(wide: Visit) -> None:
    wide.open("#/space")
    wide.ended()
    for method, dimensions in (("PCA", "2-D"), ("t-SNE", "2-D"), ("Along the vector", "2-D"), ("PCA", "3-D")):
        shown = wide.page.get_by_role("button", name=dimensions)
        if shown.get_attribute("aria-pressed") != "true":  # otherwise the same picture would be computed once more
            shown.click()
            wide.ended()
        chosen = wide.page.get_by_role("button", name=method, exact=True)
        chosen.click()
        wide.ended()
        expect(chosen).to_have_attribute("aria-pressed", "true")
        expect(wide.page.get_by_role("alert")).to_have_count(0)
        wide.screenshot(f"space-{method.replace(' ', '-').lower()}-{dimensions}")


def test_own_texts_with_labels_are_drawn_and_a_lasso_selects_points(wide: Visit) -> None:
    wide.open("#/space")
    wide.ended()
    wide.page.get_by_role("combobox", name="Texts").select_option("own")
    texts = [f"{text}\t{label}" for pair in PAIRS[:5] for text, label in zip(pair, ("good", "bad"), strict=True)]
    wide.page.get_by_role("textbox", name="One text a line").fill("\n".join(texts))
    wide.page.get_by_role("button", name="Draw", exact=True).click()
    expect(wide.page.get_by_role("list", name="Labels")).to_contain_text("good")
    wide.ended()
    box = wide.page.locator(".scatter canvas").bounding_box()
    assert box is not None
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)]
    for index, (x, y) in enumerate(corners):
        wide.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if index == 0:
            wide.page.mouse.down()
    wide.page.mouse.up()
    expect(wide.page.get_by_text("10 texts are selected")).to_be_visible()


def test_texts_are_selected_with_the_keyboard_alone_and_three_dimensions_are_never_along_a_vector(wide: Visit) -> None:
    wide.open("#/space")
    wide.ended()
    boxes = wide.page.get_by_role("list", name="All texts").get_by_role("checkbox")
    first = boxes.first
    wide.page.get_by_role("slider", name="Layer").focus()
    while not first.evaluate("box => box === document.activeElement"):
        wide.page.keyboard.press("Tab")
    assert first.evaluate("box => getComputedStyle(box).outlineStyle") == "solid"
    wide.page.keyboard.press("Space")
    wide.page.keyboard.press("Tab")
    wide.page.keyboard.press("Tab")
    wide.page.keyboard.press("Space")
    expect(wide.page.get_by_text("2 texts are selected")).to_be_visible()
    wide.inspect("space-ticked")
    wide.page.get_by_role("button", name="Along the vector", exact=True).click()
    wide.ended()
    wide.page.get_by_role("button", name="3-D").click()
    wide.ended()
    expect(wide.page.get_by_role("button", name="PCA", exact=True)).to_have_attribute("aria-pressed", "true")
    canvas = wide.page.locator(".scatter canvas")
    canvas.focus()
    picture = "document.querySelector('.scatter canvas').toDataURL()"
    before = wide.page.evaluate(picture)
    canvas.press("ArrowRight")
    wide.page.wait_for_function(f"before => {picture} !== before", arg=before)  # an arrow key turns three dimensions


def test_the_logit_lens_shows_every_layer_plain_and_steered(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.keyboard.press("3")
    wide.page.get_by_role("button", name="Logit lens").click()
    lens = wide.page.get_by_role("region", name="Logit lens", exact=True)
    lens.get_by_role("button", name="Read").click()
    expect(lens.get_by_role("row")).to_have_count(31)
    expect(lens.get_by_role("row").nth(1)).to_contain_text("Paris")
    lens.get_by_role("button", name="What changes").click()
    assert wide.violations() == []


def test_a_text_is_read_and_what_stands_out_can_be_steered_against(wide: Visit) -> None:
    wide.open("#/read")
    wide.page.get_by_role("button", name="Read it").click()
    concepts = wide.page.get_by_role("region", name="Concepts").get_by_role("button")
    expect(concepts.first).to_be_visible()
    expect(concepts.filter(has_text="sentiment")).to_contain_text("in: ")  # the words that carry it
    concepts.filter(has_text="sentiment").click()
    panel = wide.page.get_by_role("region", name="Reading of sentiment")
    assert panel.locator(".token").count() > 20
    panel.get_by_role("button", name="Read at every layer").click()
    slider = panel.get_by_role("slider", name="Layer")
    slider.fill("3")
    expect(panel.locator("output")).to_have_text("3")
    assert wide.violations() == []
    wide.screenshot("read-result")
    panel.get_by_role("button", name="Steer against this").click()
    # The text is negative, so that against it is positive: within the strengths that the card recommends.
    recommended = wide.vector("sentiment")["recommended"]
    low, high = recommended["strength"] or recommended["strengths_to_try"]
    strength = wide.page.get_by_label("Strength of sentiment")
    assert low <= float(strength.input_value()) <= high
    strength.fill("-1")
    wide.page.evaluate("location.hash = '#/read'")
    panel.get_by_role("button", name="Steer against this").click()
    expect(strength).to_be_visible()
    assert low <= float(strength.input_value()) <= high  # also where Play had it on the other side


def test_a_conversation_is_read_by_turns_and_continued_steered(wide: Visit) -> None:
    wide.open("#/read")
    wide.page.get_by_role("button", name="Conversation").click()
    wide.page.get_by_label("Message 1", exact=True).fill("How was the trip?")
    wide.page.get_by_label("Message 2", exact=True).fill("It was a disaster from the first day to the last.")
    wide.page.get_by_role("button", name="Read it").click()
    curves = wide.page.get_by_role("region", name="Curves")
    expect(curves).to_contain_text("over the turns")
    wide.page.get_by_role("button", name="Add a message").click()
    wide.page.get_by_label("Message 3", exact=True).fill("What a pity.")
    wide.page.get_by_role("button", name="Read it").click()
    turns = curves.get_by_role("img", name=re.compile("turn 3, user"))
    plot = turns
    box = plot.bounding_box()
    assert box is not None
    plot.hover(position={"x": box["width"] - 2, "y": 4})
    # Without scrolling, and the page becomes shorter: the pointer must stay over the last turn.
    wide.page.get_by_role("button", name="Remove message 3").dispatch_event("click")
    expect(wide.page.get_by_label("Message 3", exact=True)).to_have_count(0)
    wide.page.wait_for_timeout(100)
    expect(curves.locator(".hover").last).to_contain_text("turn 3")
    wide.page.get_by_role("button", name="Read it").dispatch_event("click")
    expect(turns).to_have_count(0)
    expect(curves).to_contain_text("over the turns")
    wide.page.get_by_role("button", name="Steer against this").click()
    expect(wide.page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("How was the trip?")


def test_the_library_searches_compares_saves_exports_and_deletes(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.keyboard.press("5")
    wide.page.get_by_label("Search vectors").fill("formal")
    expect(wide.page.locator(".card")).to_have_count(1)
    wide.page.get_by_label("Search vectors").fill("")
    wide.page.get_by_role("button", name="Compare all vectors").click()
    expect(wide.page.get_by_role("region", name="Table of similarities")).to_be_visible()
    profiles = wide.page.get_by_role("region", name="Profiles")
    profiles.get_by_label("Name of the profile").fill("gloomy")
    profiles.get_by_role("button", name="Save what Play uses").click()
    expect(profiles).to_contain_text("sentiment −")
    card = wide.page.locator(".card", has_text="sentiment")
    expect(card).to_contain_text("used by profile gloomy")
    card.click()
    dialog = wide.page.get_by_role("dialog")
    with wide.page.expect_download() as saved:
        dialog.get_by_role("button", name="Export safetensors").click()
    assert saved.value.path().stat().st_size > 10_000
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(dialog).to_contain_text("It is used by profile gloomy")
    assert wide.violations() == []
    wide.screenshot("library-vector")
    dialog.get_by_role("button", name="Keep it").click()
    dialog.get_by_role("button", name="Close").click()
    profiles.get_by_role("button", name="Delete gloomy").click()
    expect(profiles).to_contain_text("None yet")
