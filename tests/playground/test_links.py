"""Links that are saved on the server, in a browser: Compare, Space and Read are restored from a short address."""

import re

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from tests.embedded.server_process import ServerProcess
from tests.playground.conftest import JOB, NARROW, SECONDS, WIDE, Visit, visit

pytestmark = [pytest.mark.embedded, pytest.mark.browser]


def save_link(opened: Visit, view: str) -> str:
    """Saves the view and returns the address that was copied."""
    opened.page.get_by_role("button", name="Save and copy a link").click()
    expect(opened.page.get_by_role("status").filter(has_text="The link was copied.")).to_be_visible()
    address = str(opened.page.evaluate("navigator.clipboard.readText()"))
    assert re.fullmatch(re.escape(f"{opened.url}/#/{view}?link=") + "[a-z2-7]{16}", address)
    expect(opened.page.get_by_label("Address of the link")).to_have_value(address)
    return address


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=str)
def test_a_saved_comparison_opens_from_its_short_address(
    browser: Browser, server: ServerProcess, size: tuple[int, int]
) -> None:
    first, second = (visit(browser, server.url, size) for _ in range(2))
    first.demonstrate()
    first.page.get_by_label("Strength of sentiment").fill("0.7")
    with first.page.expect_response("**/v1/readout", timeout=JOB):
        first.page.keyboard.press("Enter")
    first.ended()
    said = [first.page.locator(f"[data-name={name}] .tokens").text_content() or "" for name in ("normal", "steered")]
    first.page.get_by_role("button", name="Copy as code").click()
    address = save_link(first, "compare")
    assert first.violations() == []
    assert first.overflow() <= 0
    first.screenshot(f"compare-link-{size[0]}")
    second.page.goto(address)
    strength = second.page.get_by_label("Strength of sentiment")
    expect(strength).to_have_value("0.7")
    for name, text in zip(("normal", "steered"), said, strict=True):
        expect(second.page.locator(f"[data-name={name}] .tokens")).to_have_text(text)  # the answers came with the link
        assert second.page.locator(f"[data-name={name}] .tokens .token").count() > 1  # word by word
    second.page.wait_for_timeout(400)  # the address follows the view with a delay
    assert second.page.url == address
    strength.fill("0.9")
    expect(second.page).to_have_url(re.compile(r"compare\?s="))
    second.page.goto(address)
    expect(strength).to_have_value("0.7")
    for opened in (first, second):
        opened.page.context.close()
        assert opened.problems == []


def test_a_deleted_link_says_so_and_keeps_the_page_usable(wide: Visit) -> None:
    wide.demonstrate()
    wide.page.get_by_role("button", name="Copy as code").click()
    address = save_link(wide, "compare")
    link = address.rpartition("=")[2]
    assert httpx2.delete(f"{wide.url}/v1/links/{link}", timeout=SECONDS).status_code == 204
    wide.page.goto("about:blank")
    wide.page.goto(address)
    alert = wide.page.get_by_role("alert")
    expect(alert).to_contain_text("This link cannot be opened")
    expect(alert).to_contain_text("it was deleted, or saved on another server")
    assert wide.violations() == []
    wide.screenshot("compare-link-deleted")
    wide.page.get_by_role("link", name="Read").click()
    expect(wide.page.get_by_role("alert")).to_have_count(0)
    wide.problems = [one for one in wide.problems if "404" not in one]  # the browser itself logs the refused request


def test_space_and_read_are_restored_from_links(wide: Visit, browser: Browser) -> None:
    wide.open("#/read")
    wide.page.get_by_role("button", name="Conversation").click()
    wide.page.get_by_label("Message 1", exact=True).fill("How was the <b>trip</b>?")
    read = save_link(wide, "read")
    wide.page.keyboard.press("3")
    wide.ended()
    wide.page.get_by_role("button", name="Along the vector", exact=True).click()
    wide.ended()
    wide.page.get_by_role("slider", name="Layer").press("Home")
    wide.page.get_by_role("slider", name="Layer").press("ArrowRight")
    space = save_link(wide, "space")
    wide.screenshot("space-link")
    again = visit(browser, wide.url)
    again.page.goto(read)
    expect(again.page.get_by_label("Message 1", exact=True)).to_have_value("How was the <b>trip</b>?")
    again.page.goto(space)
    along = again.page.get_by_role("button", name="Along the vector", exact=True)
    expect(along).to_have_attribute("aria-pressed", "true")
    expect(again.page.get_by_role("slider", name="Layer")).to_have_attribute("aria-valuetext", "layer 0")
    again.page.context.close()
    assert again.problems == []
