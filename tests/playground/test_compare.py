"""Compare in a browser: streaming, shading, alternatives, samples, sweep, code, stop, and the first start."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.embedded.server_process import ServerProcess
from tests.playground.conftest import JOB, SHORT, WIDE, Visit, post, serving, visit

pytestmark = [pytest.mark.embedded, pytest.mark.browser]


def test_a_demonstration_shows_different_texts_in_all_panes_and_samples_and_says_what_they_read(wide: Visit) -> None:
    wide.demonstrate(samples=4)  # one steered answer in forty reads no lower, and rounding decides which one is sampled
    texts = [wide.page.get_by_role("article", name=name).locator(".tokens") for name in ("Plain", "Steered")]
    expect(wide.page.get_by_role("article", name="Told in words")).to_be_visible()
    for text in texts:
        expect(text).not_to_be_empty()
    assert texts[0].inner_text() != texts[1].inner_text()
    expect(wide.page.get_by_role("article", name="Steered").locator(".sentence")).to_contain_text("(−")
    expect(wide.page.get_by_role("article", name="Told in words")).to_contain_text(
        "Told: “Answer in this manner: gloomy"
    )
    wide.page.get_by_role("button", name="Differences").click()
    expect(wide.page.locator(".token.changed").first).to_be_visible()
    assert wide.page.locator(".dot-plot circle").count() == 3 * 4
    before = texts[1].inner_text()
    wide.page.get_by_label("Sample", exact=True).get_by_role("button", name="2").click()
    assert texts[1].inner_text() != before


def test_words_are_one_text_and_shaded_and_each_shows_alternatives_from_which_the_answer_branches(wide: Visit) -> None:
    wide.demonstrate()
    normal = wide.page.get_by_role("article", name="Plain")
    expect(normal.locator("[role=button]")).to_have_count(0)
    expect(normal.get_by_role("paragraph").filter(has_text=normal.locator(".tokens").inner_text()[:30])).to_be_visible()
    for button, shaded in (
        ("Reading of sentiment", ".token.above"),
        ("Surprise", ".token.amount"),
        ("KL", ".token.amount"),
    ):
        wide.page.get_by_role("button", name=button).click()
        expect(wide.page.locator(shaded).first).to_be_attached()
    wide.page.get_by_role("button", name="Inspect words").click()
    assert normal.locator("[role=button]").count() > 5
    assert wide.violations() == []
    steered = wide.page.get_by_role("article", name="Steered")
    wide.page.set_viewport_size({"width": WIDE[0] // 2, "height": WIDE[1] // 2})  # what is seen at a zoom of 200 %
    wide.page.evaluate("window.scrollTo(0, 0)")
    first, places = steered.locator(".tokens").bounding_box(), wide.page.locator(".rail").bounding_box()
    assert first is not None
    assert places is not None
    assert first["y"] + 24 < places["y"], "the first answer begins below the window"
    wide.page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    steered.locator(".token").nth(3).click()
    alternatives = steered.get_by_role("list", name="Alternatives").get_by_role("button")
    assert alternatives.count() >= 3
    alternatives.nth(1).click()
    branch = steered.locator(".branch")
    expect(branch).not_to_be_empty()
    steered.locator(".token").nth(5).click()
    expect(branch).to_have_count(0)
    steered.get_by_role("list", name="Alternatives").get_by_role("button").nth(1).click()
    expect(branch).not_to_be_empty()
    written = branch.inner_text().removeprefix("…")
    steered.get_by_role("button", name="Use this answer").click()
    expect(steered.locator(".tokens")).to_contain_text(written)
    expect(steered.locator(".token-details")).to_have_count(0)


def test_the_address_restores_the_view(wide: Visit, browser: Browser) -> None:
    wide.demonstrate()
    wide.page.get_by_label("Strength of sentiment").fill("0.7")
    wide.remembered('"strength":0.7')
    again = visit(browser, wide.url)
    again.page.goto(wide.page.url)
    expect(again.page.get_by_label("Strength of sentiment")).to_have_value("0.7")
    again.page.context.close()


def test_the_words_next_to_the_dial_follow_the_stops_of_the_card(wide: Visit) -> None:
    wide.demonstrate()
    dial = wide.page.locator("fieldset.control")
    recommended = wide.vector("sentiment")["recommended"]
    high = max(recommended["strength"])
    for word, share in (("a little", 0.4), ("clearly", 0.7), ("a lot", 1)):
        dial.get_by_role("button", name=f"{word}, warm").click()
        expect(wide.page.get_by_label("Strength of sentiment")).to_have_value(
            f"{share * high:.2f}".rstrip("0").rstrip(".")
        )
        expect(dial.locator(".word")).to_have_text(word)
        wide.ended()
    expect(dial).to_contain_text("measured")
    expect(dial.get_by_role("button", name="Further")).to_have_count(0)
    dial.get_by_role("slider", name="Dial of sentiment").press("End")
    expect(dial.locator(".word")).to_have_text("may become incoherent")
    dial.get_by_role("button", name="Further").click()
    expect(wide.page.get_by_label("Strength of sentiment")).to_have_value(f"{1.6 * high:.2f}".rstrip("0").rstrip("."))
    wide.ended()


def test_a_sweep_is_a_strip_of_seven_answers_and_a_click_sets_the_dial(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Sweep the dial").click()
    strip = wide.page.get_by_role("region", name="Sweep of sentiment")
    expect(strip.get_by_role("listitem")).to_have_count(7)
    expect(strip).to_contain_text("A click sets the dial")
    wide.ended()
    strip.get_by_role("listitem").last.get_by_role("button").click()
    high = max(wide.vector("sentiment")["recommended"]["strength"])
    expect(wide.page.get_by_label("Strength of sentiment")).to_have_value(f"{high:g}")
    wide.ended()
    assert wide.violations() == []
    wide.screenshot("play-sweep")


def test_each_thread_goes_on_from_its_own_answer(wide: Visit) -> None:
    wide.demonstrate()
    threads = {name: wide.page.get_by_role("article", name=name) for name in ("Plain", "Steered")}
    first = {name: thread.locator(".tokens").inner_text() for name, thread in threads.items()}
    assert first["Plain"] != first["Steered"]
    wide.page.get_by_role("button", name="Next turn").click()
    prompt = wide.page.get_by_role("textbox", name="Prompt", exact=True)
    expect(prompt).to_be_focused()
    prompt.fill("And what about the neighbours?")
    with wide.page.expect_response("**/v1/readout", timeout=JOB):
        wide.run()
    wide.ended()
    for name, thread in threads.items():
        turns = thread.get_by_role("list", name="Earlier turns").get_by_role("listitem")
        expect(turns).to_have_text(["How is your new apartment?", first[name], "And what about the neighbours?"])
        expect(thread.locator(".tokens")).not_to_be_empty()
    expect(threads["Steered"].locator(".sentence")).to_be_visible()
    wide.page.get_by_text("Drift by turn").click()
    wide.page.get_by_role("button", name="Read sentiment in every answer").click()
    drift = wide.page.get_by_role("region", name="Drift of sentiment")
    expect(drift.get_by_role("row")).to_have_count(4, timeout=JOB)
    expect(drift.get_by_role("row", name="Steered").get_by_role("cell")).to_have_text([re.compile(r"[+−]?\d")] * 2)
    wide.inspect("play-turns")
    wide.page.get_by_role("button", name="One turn back").click()
    expect(prompt).to_have_value("How is your new apartment?")


def test_a_run_before_comes_back_with_its_settings(wide: Visit) -> None:
    wide.demonstrate()
    steered = wide.page.get_by_role("article", name="Steered").locator(".tokens")
    gloomy = steered.inner_text()
    wide.page.get_by_role("button", name="a lot, warm").click()
    runs = wide.page.get_by_role("region", name="Runs").get_by_role("listitem")
    expect(runs).to_have_count(2)
    wide.ended()
    assert steered.inner_text() != gloomy
    wide.page.get_by_role("button", name="Undo").click()
    expect(steered).to_have_text(gloomy)
    expect(wide.page.get_by_label("Strength of sentiment")).to_have_value("-1.67")
    wide.page.get_by_role("button", name="Pin run 1").click()
    expect(runs.first).to_have_class("pinned")


def test_the_first_page_shows_saved_answers_and_asks_the_server_for_none(wide: Visit) -> None:
    asked: list[str] = []
    wide.page.on("request", lambda request: asked.append(request.url))
    wide.open("")
    saved = wide.page.get_by_role("region", name="Saved answers")
    texts = []
    for stop in ("a lot, gloomy", "off", "a lot, warm"):
        saved.get_by_role("button", name=re.compile(f"^{stop}")).click()
        expect(saved.get_by_role("button", name=re.compile(f"^{stop}"))).to_have_attribute("aria-pressed", "true")
        texts.append(saved.locator(".hero .tokens").inner_text())
    assert len(set(texts)) == len(texts)
    expect(saved).to_contain_text("over 16 answers")
    assert saved.get_by_role("list", name="More saved answers").get_by_role("listitem").count() >= 2
    assert not any("/v1/compare" in url or "/v1/generate" in url for url in asked)
    wide.inspect("play-landing")
    saved.get_by_role("button", name="Ask it live").click()
    expect(wide.page.get_by_role("article", name="Steered").locator(".token").first).to_be_visible()
    high = max(wide.vector("sentiment")["recommended"]["strength"])
    expect(wide.page.get_by_label("Strength of sentiment")).to_have_value(f"{high:g}")
    wide.ended()


def test_a_dose_too_small_is_explained_and_mended_by_a_button(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Settings").click()
    # "Hello! How can": each word leads the next likely one by 1.5 nats or more. Where two are nearly equal, as are the first words of the
    # answer to "What is the capital of France?" (0.12), rounding decides, on each kind of processor and with any dose another way.
    wide.page.get_by_role("textbox", name="Prompt", exact=True).fill("Hi")
    wide.page.get_by_label("Temperature").fill("0")
    wide.page.get_by_label("Tokens", exact=True).fill("4")
    wide.page.get_by_label("Strength of sentiment").fill("0.05")
    wide.page.get_by_role("button", name="Run", exact=True).click()
    wide.ended()
    why = wide.page.get_by_role("region", name="Why steering does not show")
    expect(why).to_contain_text("dose of sentiment is small")
    why.get_by_role("button", name="Double the strength").click()
    expect(wide.page.get_by_label("Strength of sentiment")).to_have_value("0.1")
    wide.ended()


def test_the_json_of_the_dialog_is_a_request_that_the_server_answers(wide: Visit, server: ServerProcess) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Copy as code").click()
    wide.page.get_by_role("button", name="JSON").click()
    wide.page.get_by_role("button", name="Copy the code").click()
    dialog = wide.page.get_by_role("dialog")
    expect(dialog).to_contain_text("The code was copied.")
    copied = json.loads(wide.page.evaluate("navigator.clipboard.readText()"))
    dialog.get_by_role("button", name="Python").click()
    expect(dialog).not_to_contain_text("The code was copied.")
    wide.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as with plain http
    dialog.get_by_role("button", name="Copy the code").click()
    expect(dialog).to_contain_text("Select the code and copy it.")
    answer = post(server.url, "/v1/compare", {**copied, "max_tokens": 4})
    assert [arm["name"] for arm in answer["arms"]] == ["normal", "steered", "prompt-only"]


def test_tokens_are_chosen_by_role_where_the_engine_can(wide: Visit) -> None:
    wide.demonstrate()
    more = wide.page.locator("fieldset.control details.more")
    more.locator("summary").click()
    if not wide.capabilities()["token_scopes"]:
        expect(more).to_contain_text("cannot choose tokens by role or by id")
        expect(more.get_by_label("Only token ids")).to_have_count(0)
        return
    more.get_by_role("combobox", name=re.compile("^Of")).select_option("user")
    wide.page.get_by_role("button", name="Run", exact=True).click()
    wide.ended()
    expect(wide.page.get_by_role("alert")).to_have_count(0)
    expect(more.locator("summary")).to_contain_text("some tokens")
    steered = wide.page.get_by_role("article", name="Steered")
    steered.locator(".token").nth(3).click()
    expect(steered.get_by_role("list", name="Alternatives").get_by_role("button").first).to_be_disabled()
    expect(steered.locator(".token-details")).to_contain_text("No other word can be tried here")
    wide.page.get_by_role("article", name="Plain").locator(".token").nth(3).click()
    plain = wide.page.get_by_role("article", name="Plain").get_by_role("list", name="Alternatives")
    expect(plain.get_by_role("button").first).to_be_enabled()


def test_a_temperature_beyond_what_the_engine_samples_is_not_taken(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Settings").click()
    highest = wide.capabilities()["limits"].get("max_temperature", 5)
    for given in (highest, highest + 1):
        wide.page.get_by_label("Temperature").fill(f"{given:g}")
        wide.page.get_by_role("button", name="Run", exact=True).click()
        wide.ended()
        expect(wide.page.get_by_role("alert")).to_have_count(0)
    wide.page.get_by_role("button", name="Copy as code").click()
    wide.page.get_by_role("button", name="JSON").click()
    expect(wide.page.get_by_role("dialog")).to_contain_text(f'"temperature": {highest:g}')


def test_stop_ends_a_run_and_keeps_what_has_arrived(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Settings").click()
    wide.page.get_by_label("Tokens", exact=True).fill("1500")
    wide.page.keyboard.press("Control+Enter")
    expect(wide.page.get_by_role("article", name="Plain").locator(".token").nth(20)).to_be_visible()
    wide.page.keyboard.press("Escape")
    wide.ended()
    expect(wide.page.get_by_role("article", name="Plain").locator(".token").nth(20)).to_be_visible()
    expect(wide.page.get_by_role("button", name="Run", exact=True)).to_be_visible()


def test_markup_in_a_prompt_and_in_an_answer_stays_text(wide: Visit) -> None:
    wide.open(f"#/compare?s={SHORT}")
    wide.page.get_by_role("button", name="Settings").click()
    wide.page.get_by_role("button", name="Continue the text").click()
    wide.page.get_by_role("textbox", name="Prompt", exact=True).fill(
        "<b id='planted'>bold</b><img src=x onerror=alert(1)> <b>"
    )
    wide.page.get_by_role("button", name="Run", exact=True).click()
    wide.ended()
    assert wide.page.locator("#planted, main img").count() == 0


def test_an_empty_library_makes_its_vectors_in_one_click_and_shows_a_demonstration(
    browser: Browser, cache: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, cache) as empty:
        first = visit(browser, empty.url)
        first.open("")
        first.page.get_by_role("button", name="Make the starter vectors").click()
        steered = first.page.get_by_role("article", name="Steered")
        expect(steered.locator(".token").first).to_be_visible(timeout=JOB)
        first.page.get_by_role("region", name="Starter vectors").get_by_role("button", name="Stop").click()
        first.page.keyboard.press("2")
        for name in ("Dictionary", "Another model"):  # this server has neither
            expect(first.page.get_by_role("button", name=name)).to_have_count(0)
        first.page.context.close()
        assert first.problems == []
