"""Compare in a browser: streaming, shading, alternatives, samples, sweep, code, stop, and the first start."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.embedded.server_process import ServerProcess
from tests.playground.conftest import JOB, SHORT, Visit, post, serving, visit

pytestmark = [pytest.mark.embedded, pytest.mark.browser]


def test_a_demonstration_shows_different_texts_in_all_panes_and_says_what_they_read(wide: Visit) -> None:
    wide.demonstrate(samples=4)  # one steered answer in forty reads no lower, and rounding decides which one is sampled
    texts = [wide.page.get_by_role("article", name=name).locator(".tokens") for name in ("Normal", "Steered")]
    expect(wide.page.get_by_role("article", name="Prompt only")).to_be_visible()
    for text in texts:
        expect(text).not_to_be_empty()
    assert texts[0].inner_text() != texts[1].inner_text()
    expect(wide.page.get_by_role("article", name="Steered")).to_contain_text("Δ −")
    expect(wide.page.get_by_role("article", name="Prompt only")).to_contain_text("Told: “Answer in this manner: gloomy")
    wide.page.get_by_role("button", name="Differences").click()
    expect(wide.page.locator(".token.changed").first).to_be_visible()


def test_tokens_are_shaded_by_reading_surprise_and_kl(wide: Visit) -> None:
    wide.demonstrate()
    for button, shaded in (
        ("Reading of sentiment", ".token.above"),
        ("Surprise", ".token.amount"),
        ("KL", ".token.amount"),
    ):
        wide.page.get_by_role("button", name=button).click()
        expect(wide.page.locator(shaded).first).to_be_attached()


def test_a_token_shows_its_alternatives_and_the_answer_branches_from_one(wide: Visit) -> None:
    wide.demonstrate()
    steered = wide.page.get_by_role("article", name="Steered")
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


def test_the_words_next_to_the_slider_follow_the_ranges_of_the_card(wide: Visit) -> None:
    wide.demonstrate()
    slider = wide.page.get_by_label("Strength of sentiment")
    card = wide.page.locator("fieldset.control")
    recommended = wide.vector("sentiment")["recommended"]
    low, high = recommended["strength"] or recommended["strengths_to_try"]
    for strength, word in (
        (low / 4, "barely"),
        (low + (high - low) / 4, "clearly"),
        (1.2 * high, "may become incoherent"),
    ):
        slider.fill(f"{strength:.1f}")
        expect(card).to_contain_text(word)


def test_several_samples_are_drawn_as_dots_and_can_be_chosen(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Settings").click()
    wide.page.get_by_label("Samples").fill("3")
    wide.page.get_by_role("button", name="Run", exact=True).click()
    wide.ended()
    assert wide.page.locator(".dot-plot circle").count() == 9
    before = wide.page.get_by_role("article", name="Steered").locator(".tokens").inner_text()
    wide.page.get_by_label("Sample", exact=True).get_by_role("button", name="2").click()
    assert wide.page.get_by_role("article", name="Steered").locator(".tokens").inner_text() != before


def test_a_sweep_shows_a_text_for_each_strength_and_two_curves(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Sweep the strength").click()
    expect(wide.page.locator(".multiple")).to_have_count(7)
    wide.ended()
    expect(wide.page.locator(".charts canvas")).to_have_count(2)


def test_a_dose_too_small_is_explained_and_mended_by_a_button(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Settings").click()
    wide.page.get_by_label("Temperature").fill("0")  # a sampled token may change with any dose
    wide.page.get_by_label("Tokens", exact=True).fill("4")  # the more, the likelier are two that are nearly equal
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
    expect(wide.page.get_by_role("article", name="Normal").locator(".token").nth(20)).to_be_visible()
    wide.page.keyboard.press("Escape")
    wide.ended()
    expect(wide.page.get_by_role("article", name="Normal").locator(".token").nth(20)).to_be_visible()
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
    browser: Browser, model_cache: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, model_cache) as empty:
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
