"""The frame in a browser: places by key and link, themes, keys of the API, accessibility and screenshots of every place."""

import gzip
import re
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from app.api.system import STATIC
from tests.embedded.server_process import ServerProcess
from tests.playground.conftest import NARROW, SECONDS, THEMES, WIDE, Visit, serving, visit

pytestmark = [pytest.mark.embedded, pytest.mark.browser]

PLACES = ("compare", "make", "space", "read", "library", "admin")
TITLES = {place: place.capitalize() for place in PLACES} | {"compare": "Play"}


def test_the_scripts_are_small_and_no_file_names_another_host() -> None:
    scripts = list((STATIC / "assets").glob("*.js"))
    assert len(scripts) >= len(PLACES)
    assert sum(len(gzip.compress(path.read_bytes())) for path in scripts) < 110_000
    allowed = {"http://www.w3.org/", "https://www.w3.org/"}  # names of XML vocabularies, never requested
    pages = [
        path for path in (STATIC / "assets").iterdir() if path.suffix != ".md"
    ]  # the documentation is read, not run
    for path in [*STATIC.glob("*.html"), *pages]:
        text = path.read_text(encoding="utf-8")
        for name in allowed:
            text = text.replace(name, "")
        assert "<script>" not in text
        assert "style=" not in text or path.suffix == ".js"
        if path.suffix != ".js":
            assert "http://" not in text
            assert "https://" not in text


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=str)
def test_every_place_is_accessible_in_both_themes_and_widths(
    browser: Browser, server: ServerProcess, size: tuple[int, int]
) -> None:
    page = visit(browser, server.url, size)
    for place in PLACES:
        page.open(f"#/{place}")
        expect(page.page.get_by_role("heading", level=1)).to_have_text(TITLES[place])
        page.page.wait_for_load_state("networkidle")
        for theme in THEMES:
            page.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            assert page.violations() == [], (place, theme)
            page.screenshot(f"{place}-{size[0]}-{theme}")
            assert page.overflow() <= 0, f"{place} scrolls sideways, {theme}"
    page.page.context.close()
    assert page.problems == []


def test_digits_open_places_and_a_question_mark_lists_the_keys(wide: Visit) -> None:
    wide.open("")
    for digit, place in enumerate(PLACES, start=1):
        wide.page.keyboard.press(str(digit))
        expect(wide.page.get_by_role("heading", level=1)).to_have_text(TITLES[place])
    wide.page.keyboard.press("?")
    expect(wide.page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    wide.page.keyboard.press("Escape")
    expect(wide.page.get_by_role("dialog")).to_have_count(0)


def test_a_place_that_cannot_be_fetched_says_so_until_it_can(browser: Browser, server: ServerProcess) -> None:
    page = visit(browser, server.url)
    page.page.route("**/assets/Read-*.js", lambda route: route.abort())
    page.open("#/read")
    note = page.page.get_by_role("alert")
    expect(note).to_contain_text("Read could not be loaded. Load the page again")
    page.page.get_by_role("link", name="Library").click()
    expect(page.page.get_by_role("heading", level=1)).to_have_text("Library")
    expect(note).to_have_count(0)
    page.page.unroute("**/assets/Read-*.js")
    page.open("?again#/read")
    expect(page.page.get_by_role("button", name="Read it")).to_be_visible()
    page.page.context.close()
    assert not any(problem.startswith("exception") for problem in page.problems)


def test_digits_typed_into_a_field_stay_there(wide: Visit) -> None:
    wide.open("")
    field = wide.page.get_by_role("textbox", name="Prompt", exact=True)
    field.fill("")
    field.press_sequentially("2 + 3?")
    expect(field).to_have_value("2 + 3?")
    expect(wide.page.get_by_role("heading", level=1)).to_have_text("Play")


def test_the_theme_is_remembered(wide: Visit) -> None:
    wide.open("")
    button = wide.page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    wide.page.reload()
    assert wide.page.evaluate("document.documentElement.dataset.theme") == "dark"


def manage_keys(opened: Visit) -> None:
    """Makes a key, replaces it and revokes the first one, as an admin does."""
    keys = opened.page.get_by_role("region", name="API keys")
    keys.get_by_label("Name of its owner").fill("reader")
    keys.get_by_role("button", name="Make the key").dblclick()
    expect(keys.get_by_role("listitem")).to_contain_text("may not make or change vectors")
    first = keys.get_by_role("note").locator("code").inner_text()
    opened.page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject())")  # as without https
    keys.get_by_role("button", name="Copy the key").click()
    expect(keys.get_by_role("button", name="Select the key")).to_be_visible()
    assert opened.page.evaluate("String(getSelection())") == first
    keys.get_by_role("button", name="Rotate reader").click()
    expect(keys.get_by_role("note").locator("code")).not_to_have_text(first)
    second = keys.get_by_role("note").locator("code").inner_text()
    opened.inspect("admin-keys")
    answers = [status(opened.url, key) for key in (first, second)]
    keys.get_by_role("button", name="Revoke the old one").click()
    expect(keys.get_by_role("listitem")).to_have_count(1)
    assert [*answers, status(opened.url, first), status(opened.url, second)] == [200, 200, 401, 200]
    keys.get_by_role("button", name="Revoke reader").click()
    keys.get_by_role("button", name="Revoke reader").click()
    expect(keys).to_contain_text("None in the database")


def use_key(opened: Visit, key: str) -> None:
    """Gives the page a key in the window that asks for it."""
    dialog = opened.page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key", exact=True).fill(key)
    dialog.get_by_role("button", name="Use this key").click()


def status(url: str, key: str) -> int:
    """Returns the status of a request with a key."""
    return httpx2.get(f"{url}/v1/vectors", headers={"Authorization": f"Bearer {key}"}, timeout=SECONDS).status_code


def test_a_server_with_keys_asks_for_one_and_says_what_a_key_may_not_do(
    browser: Browser, cache: Path, tmp_path: Path
) -> None:
    keys = "key-of-everything,key-that-reads:read+generate"
    with serving(tmp_path, cache, api_keys=keys) as server:
        opened = visit(browser, server.url, NARROW)
        page = opened.page
        page.goto(server.url)
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog.get_by_label("Key", exact=True)).to_be_focused()
        use_key(opened, "mistyped")
        expect(dialog).to_contain_text("not known to it")
        expect(dialog.get_by_label("Key", exact=True)).to_have_attribute("placeholder", "")
        with page.expect_response(lambda one: one.url.endswith("/v1/concepts") and one.ok):
            use_key(opened, "key-that-reads")
        expect(page.get_by_role("region", name="Starter vectors")).to_contain_text("lacks the scope write")
        page.get_by_role("link", name="Make").click()
        expect(page.get_by_role("note").first).to_contain_text("lacks the scope write")
        page.get_by_role("link", name="Play").click()
        page.get_by_role("button", name="Copy as code").click()
        page.get_by_role("button", name="Save and copy a link").click()
        expect(page.get_by_role("dialog")).to_contain_text(
            "the server saved nothing: this route needs the scope 'write'"
        )
        expect(page.get_by_label("Address of the link")).to_have_value(re.compile(r"/#/compare\?s="))
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Admin").click()
        for name in ("Policy", "Monitors", "API keys"):
            expect(page.get_by_role("region", name=name, exact=True)).to_contain_text("Not with this key")
        opened.inspect("admin-refused")
        page.get_by_role("link", name="Library").click()
        page.get_by_role("button", name="API key").click()
        profiles = page.get_by_role("region", name="Profiles", exact=True)
        expect(profiles).to_contain_text("None yet")
        dialog.get_by_role("button", name="Remove the key").click()
        expect(profiles).not_to_contain_text("None yet")  # it is not known to a tab without a key
        use_key(opened, "key-of-everything")
        expect(profiles).to_contain_text("None yet")
        page.get_by_role("link", name="Admin").click()
        manage_keys(opened)
        page.get_by_role("button", name="API key").click()
        use_key(opened, "key-that-reads")
        expect(page.get_by_role("region", name="Policy", exact=True)).to_contain_text("Not with this key")
        expect(page.get_by_role("form", name="Limits of steering")).to_have_count(0)  # what the former key was shown
        page.context.close()
        # The browser itself logs every refused request; anything else is a problem.
        assert [one for one in opened.problems if "401" not in one and "403" not in one] == []
