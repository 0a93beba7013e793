"""Number fields in a browser: what is typed stays as it was typed, and what is not allowed is marked."""

import base64
import json
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.playground.conftest import Visit

pytestmark = [pytest.mark.embedded, pytest.mark.browser]


def address(state: dict[str, Any]) -> str:
    """Returns the address of a state of Compare."""
    return "#/compare?s=" + base64.urlsafe_b64encode(json.dumps(state).encode()).decode().rstrip("=")


def test_a_number_is_taken_as_it_is_typed_and_what_is_not_allowed_says_so(wide: Visit) -> None:
    when = {"vector": "sentiment", "side": "above", "bound": 0.5, "at": "prompt"}
    control = {"vector": "sentiment", "operation": "rotate", "degrees": 30, "when": when}
    wide.open(address({"controls": [control]}))
    wide.page.get_by_role("button", name="Settings").click()
    wide.page.locator("fieldset.control details.more summary").click()
    typed = {
        "Temperature": "0.05",
        "Degrees toward the vector": "-30",
        "bound": "-0.5",
        "Tokens": "5000",
        "Seed": "1.5",
    }
    for label, text in typed.items():
        field = wide.page.get_by_role("spinbutton", name=label, exact=True)
        field.press("Control+a")
        field.press_sequentially(text)
        expect(field).to_have_value(text)
    tokens = wide.page.get_by_role("spinbutton", name="Tokens", exact=True)
    expect(tokens).to_have_attribute("aria-invalid", "true")
    expect(tokens).to_have_accessible_description("It must be 1 to 2048. 500 is used.")
    expect(wide.page.get_by_text("It must be a whole number. 1 is used.")).to_be_visible()
    assert wide.violations() == []
    samples = wide.page.get_by_label("Samples", exact=True)
    samples.fill("")
    samples.blur()
    expect(samples).to_have_value("1")
    wide.page.get_by_role("button", name="Copy as code").click()
    wide.page.get_by_role("button", name="JSON").click()
    dialog = wide.page.get_by_role("dialog")
    for part in ('"temperature": 0.05', '"degrees": -30', '"above": -0.5', '"max_tokens": 500', '"seed": 1'):
        expect(dialog).to_contain_text(part)
    dialog.get_by_role("button", name="Close").click()
    wide.open(address({"sampling": {"max_tokens": 16}}))
    expect(tokens).to_have_value("16")
    expect(wide.page.get_by_role("spinbutton", name="Temperature")).to_have_value("0.7")
