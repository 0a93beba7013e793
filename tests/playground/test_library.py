"""The library as an operator uses it: policy, monitors with live counts, and two versions of a vector."""

import httpx2
import pytest
from playwright.sync_api import expect

from tests.playground.conftest import SECONDS, Visit, post

pytestmark = [pytest.mark.embedded, pytest.mark.browser]


def test_a_policy_holds_for_all_traffic_and_its_monitor_counts(wide: Visit) -> None:
    try:
        set_policy(wide)
        form = wide.page.get_by_role("form", name="New monitor")
        form.get_by_label("Name").fill("gloom")
        form.get_by_role("button", name="Add the monitor").click()
        expect(wide.page.get_by_role("alert")).to_contain_text("unique")
        expect(form.get_by_label("Name")).to_have_value("gloom")
        wide.page.get_by_role("button", name="Remove gloom").click()
        expect(wide.page.get_by_role("region", name="Monitors", exact=True)).to_contain_text("None yet")
        policy = wide.page.get_by_role("region", name="Policy")
        policy.get_by_role("button", name="Remove sentiment").click()
        expect(policy).to_contain_text("None.")
        policy.get_by_label("Requests may steer").select_option("none")
        policy.get_by_role("button", name="Set the limits").click()
        expect(policy).to_contain_text("Now: requests may not steer")
        refused = httpx2.post(f"{wide.url}/v1/generate", json=STEERED, timeout=SECONDS)
        assert refused.status_code == 403, refused.text
    finally:
        httpx2.delete(f"{wide.url}/v1/policy", timeout=SECONDS)
    wide.problems = [one for one in wide.problems if "400" not in one]  # the browser itself logs the refused name


HOUR = 3_600_000
"""Milliseconds. The page's clock begins at 0 and has not come so far when it is stopped."""
STEERED = {"prompt": "Hello", "max_tokens": 4, "steering": [{"vector": "sentiment", "strength": 0.5}]}


def set_policy(wide: Visit) -> None:
    """Makes what Play uses mandatory, adds a monitor that is always raised, and reads what it counted."""
    wide.demonstrate()
    wide.page.keyboard.press("6")
    policy = wide.page.get_by_role("region", name="Policy")
    policy.get_by_role("button", name="Add what Play uses").click()
    expect(policy).to_contain_text("sentiment@")
    dose = policy.get_by_label("Largest relative dose")
    dose.fill("0.75")
    form = wide.page.get_by_role("form", name="New monitor")
    form.get_by_label("Name").fill("gloom")
    form.get_by_label("Vector").select_option("sentiment")
    form.get_by_label("Raised").select_option("below")
    form.get_by_label("Bound").fill("5")
    form.get_by_role("button", name="Add the monitor").click()
    row = wide.page.get_by_role("region", name="Table of monitors").get_by_role("row", name="gloom")
    expect(row).to_contain_text("below 5.00 in the answer")
    expect(dose).to_have_value("0.75")  # what was typed in another form stays
    dose.fill("")
    answer = post(wide.url, "/v1/generate", {"prompt": "Hello", "max_tokens": 4})
    assert [one["vector"].split("@")[0] for one in answer["steering"]["mandatory"]] == ["sentiment"]
    expect(row.get_by_role("cell").nth(2)).not_to_have_text("0")  # without a reload
    row.get_by_role("button", name="gloom", exact=True).click()
    scores = wide.page.get_by_role("region", name="Scores of gloom")
    expect(scores.get_by_role("list", name="Latest raises").get_by_role("listitem")).to_have_count(1)
    wide.inspect("admin-policy")


def test_a_refusal_is_shown_where_it_was_asked_for_and_a_second_click_removes_nothing(wide: Visit) -> None:
    policy = {
        "mandatory": [{"vector": name, "strength": 0.5} for name in ("sentiment", "formality")],
        "monitors": [{"name": "gloom", "vector": "sentiment", "above": 5}],
    }
    httpx2.put(f"{wide.url}/v1/policy", json=policy, timeout=SECONDS).raise_for_status()
    try:
        wide.page.clock.install(time=0)
        wide.open("#/admin")
        form = wide.page.get_by_role("form", name="New monitor")
        form.get_by_label("Name").fill("gloom")
        form.get_by_role("button", name="Add the monitor").click()
        expect(form.get_by_role("alert")).to_contain_text("unique")
        expect(form.get_by_role("alert")).to_be_in_viewport()
        with wide.page.expect_response("**/v1/monitors"):
            pass
        expect(form.get_by_role("alert")).to_contain_text("unique")  # a poll does not take it away
        remove_twice(wide)
        delete_a_used_vector(wide)
    finally:
        httpx2.delete(f"{wide.url}/v1/policy", timeout=SECONDS)
    logged = ("400", "409")  # the browser itself logs what was refused
    wide.problems = [one for one in wide.problems if not any(status in one for status in logged)]


def remove_twice(wide: Visit) -> None:
    """Clicks twice where the first mandatory vector is removed: the second one moves to that place. The page's clock stands still
    between the clicks, so that the second one comes before the buttons are ready again, however slow the machine is."""
    panel = wide.page.get_by_role("region", name="Mandatory steering")
    button = panel.get_by_role("button", name="Remove sentiment")
    expect(button).to_be_enabled()
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    wide.page.clock.pause_at(HOUR)
    wide.page.mouse.click(*middle)
    expect(panel.get_by_role("listitem")).to_have_count(1)
    wide.page.clock.run_for(250)
    wide.page.mouse.click(*middle)
    wide.page.clock.resume()
    expect(panel.get_by_role("button", name="Remove formality")).to_be_enabled()
    expect(panel.get_by_role("listitem")).to_have_count(1)
    held = httpx2.get(f"{wide.url}/v1/policy", timeout=SECONDS).json()
    assert [one["vector"].split("@")[0] for one in held["mandatory"]] == ["formality"]


def delete_a_used_vector(wide: Visit) -> None:
    """Asks to delete a vector that the policy needs; its window says why not, and offers to force it until it closes."""
    dialog = wide.page.get_by_role("dialog")
    wide.open("#/library")
    for opened in (1, 2):
        wide.page.locator(".card", has_text="formality").click()
        dialog.get_by_role("button", name="Delete", exact=True).click()
        expect(dialog).to_contain_text("It is used by the policy")
        dialog.get_by_role("button", name="Delete formality", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text("is used by the policy")
        expect(dialog.get_by_role("button", name="Delete formality although it is used")).to_be_enabled()
        if opened == 1:
            wide.page.keyboard.press("Escape")
    assert wide.violations() == []
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog.get_by_role("alert")).to_have_count(0)


def test_two_versions_of_a_vector_are_compared(wide: Visit) -> None:
    terms = [{"vector": "sentiment", "weight": 1}, {"vector": "formality", "weight": 0.3}]
    for count in (1, 2):
        post(wide.url, "/v1/vectors/combine", {"name": "mixed", "terms": terms[:count]})
    try:
        wide.open("#/library")
        wide.page.locator(".card", has_text="mixed").click()
        compared = wide.page.get_by_role("region", name="Comparison of versions")
        expect(compared).to_contain_text("Related, but not the same direction")
        expect(compared.get_by_role("columnheader")).to_contain_text(["mixed@", "mixed@"])
        wide.inspect("library-versions")
        compared.get_by_label("Version on the left").select_option(index=0)
        expect(compared).to_contain_text("Nearly the same direction (mean cosine +1.00)")
    finally:
        httpx2.delete(f"{wide.url}/v1/vectors/mixed", timeout=SECONDS)
