"""Journeys in a browser: the first visit by keyboard, code that is copied and run, a vector from a description, a job over a reload,
a killed server, and defects that only a browser shows."""

import base64
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Locator, Route, expect

from tests.conftest import REPOSITORY
from tests.embedded.server_process import ServerProcess
from tests.playground.conftest import JOB, SECONDS, SHORT, STARTERS, Visit, post, serving, visit
from tests.playground.test_frame import use_key

pytestmark = [pytest.mark.embedded, pytest.mark.browser]

KEY = "key-of-everything"
LONG = base64.urlsafe_b64encode(b'{"sampling": {"max_tokens": 1500}}').decode().rstrip("=")
"""The state of Play with an answer that goes on while a server is killed."""
WRITTEN = "() => document.querySelector('article[aria-label=Plain] .tokens')?.innerText.length > 80"
"""Whether the plain answer has more than the eight tokens of the next one; a browser asks this before every frame."""
SNIPPETS = {"Python": [sys.executable, "-"], "OpenAI client": [sys.executable, "-"], "curl": ["sh", "-s"]}


def snippets(opened: Visit) -> dict[str, str]:
    """Returns the code of each kind for what Compare has; the first kind is the one that is shown at first."""
    opened.page.get_by_role("button", name="Copy as code").click()
    dialog = opened.page.get_by_role("dialog")
    shown = dialog.locator("pre").inner_text()
    found = {}
    for kind in SNIPPETS:
        dialog.get_by_role("button", name=kind, exact=True).click()
        found[kind] = dialog.locator("pre").inner_text()
    dialog.get_by_role("button", name="Close").click()
    assert next(iter(found.values())) == shown
    assert len(shown.splitlines()) == 6
    return found


def run_snippet(kind: str, code: str, key: str | None) -> str:
    """Returns what a snippet prints. It must exit with 0."""
    environment = {name: value for name, value in os.environ.items() if name != "STEERING_API_KEY"}
    environment |= {"PYTHONPATH": str(REPOSITORY)} | ({} if key is None else {"STEERING_API_KEY": key})
    ran = subprocess.run(
        SNIPPETS[kind], check=False, input=code, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert ran.returncode == 0, f"{kind}: {ran.stderr}"
    return ran.stdout


def test_each_snippet_prints_a_steered_answer_without_a_key(wide: Visit) -> None:
    wide.demonstrate()
    for kind, code in snippets(wide).items():
        if kind == "OpenAI client" and importlib.util.find_spec("openai") is None:
            continue
        assert "STEERING_API_KEY" in code
        assert "sentiment" in code
        assert len(run_snippet(kind, code, None)) > 20, kind


def tab_to(opened: Visit, wanted: Locator, key: str = "Tab") -> None:
    """Presses Tab until an element has the focus, as often as a person would before the first answer."""
    for _ in range(30):
        opened.page.keyboard.press(key)
        if wanted.evaluate("element => element === document.activeElement"):
            return
    pytest.fail(f"pressing {key} 30 times does not reach {wanted}")


def test_the_keyboard_alone_leads_from_the_first_visit_to_a_difference_and_moves_the_dial(wide: Visit) -> None:
    page = wide.page
    wide.open("")
    said = page.locator(".hero .tokens")
    at_first = said.inner_text()
    tab_to(wide, page.get_by_role("button", name="Skip to the content"))
    page.keyboard.press("Enter")
    tab_to(wide, page.get_by_role("slider", name="Saved answers about sentiment"))
    page.keyboard.press("Home")  # one key: the answer at the other end of the dial
    expect(said).not_to_have_text(at_first)
    expect(page.locator(".hero .sentence")).to_contain_text("Clearly more “gloomy")
    wide.inspect("journey-keyboard-landing")
    tab_to(wide, page.get_by_role("button", name="Ask it live"))
    page.keyboard.press("Enter")
    steered, plain = (page.get_by_role("article", name=name).locator(".tokens") for name in ("Steered", "Plain"))
    expect(page.get_by_label("Strength of sentiment")).to_have_value("-1.7")
    expect(steered).not_to_be_empty()
    wide.ended()
    answers = steered.inner_text(), plain.inner_text()
    assert answers[0] != answers[1]
    dial = page.get_by_role("slider", name="Dial of sentiment")
    tab_to(wide, dial, "Shift+Tab")  # the focus went to the answers, which come after it
    for key in ("End", "PageDown", "PageDown"):  # a key that is held runs what it stops at
        page.keyboard.press(key)
    expect(page.get_by_role("article", name="Steered")).to_contain_text("sentiment 1.36")
    wide.ended()
    assert steered.inner_text() != answers[0]
    assert plain.inner_text() == answers[1]
    wide.inspect("journey-keyboard-dial")


def test_each_snippet_prints_an_answer_with_a_key_and_a_limited_key_sees_a_server_go(
    browser: Browser, cache: Path, tmp_path: Path
) -> None:
    keys = f"{KEY},key-that-reads:read+generate"
    with serving(tmp_path, cache, api_keys=keys) as server:
        opened = visit(browser, server.url)
        opened.page.goto(f"{server.url}/#/compare?s={SHORT}")
        use_key(opened, "key-that-reads")
        dot = opened.page.locator(".top-bar .dot")
        opened.page.locator(".top-bar .dot:not(.waiting):not(.off)").wait_for()
        for kind, code in snippets(opened).items():
            if kind != "OpenAI client" or importlib.util.find_spec("openai") is not None:
                assert len(run_snippet(kind, code, KEY)) > 20, kind
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        expect(dot).to_have_class("dot off")
        expect(opened.page.get_by_role("alert")).to_contain_text("Trying again every few seconds")
        opened.page.context.close()


def test_a_server_that_is_killed_in_an_answer_and_a_job_and_starts_again_tells_how_they_ended(
    browser: Browser, cache: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, cache) as server:
        found = server.client.capabilities()
        direction = [1.0] + [0.0] * (found.model.d_model - 1)
        post(server.url, "/v1/vectors", {"name": "planted", "directions": {str(found.layers // 2): direction}})
        opened = visit(browser, server.url)
        page = opened.page
        tray, answer = page.locator(".tray"), page.get_by_role("article", name="Plain").locator(".tokens")
        alerts = page.get_by_role("alert")
        opened.open("#/library")
        page.evaluate("sessionStorage.setItem('steering-server.card', JSON.stringify('planted'))")
        page.goto(f"{server.url}/?again#/make")
        with page.expect_response("**/v1/evaluations*", timeout=JOB):
            page.get_by_role("button", name="Measure its strengths").click()
        page.goto(f"{server.url}/?again#/compare?s={LONG}")
        tray.locator("summary").click()
        expect(tray).to_contain_text(" / 2728", timeout=JOB)  # the job runs
        opened.run()
        page.wait_for_function(WRITTEN, timeout=JOB)
        os.kill(server.process.pid, signal.SIGSTOP)  # at once: from here on it neither goes on nor ends
        expect(page.get_by_role("region", name="Answers", exact=True)).to_have_attribute("aria-busy", "true")
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        expect(page.locator(".top-bar .dot")).to_have_class("dot off")
        expect(alerts.filter(has_text="Trying again every few seconds")).to_be_visible()
        expect(alerts.filter(has_text="ended before they were complete")).to_be_visible()
        opened.ended()
        written = answer.inner_text()
        assert written
        expect(tray).to_contain_text("Measuring planted: waiting for the server")
        opened.screenshot("journey-killed")
        server.client.close()
        server.start(int(server.url.rpartition(":")[2]))
        expect(page.locator(".top-bar .dot")).to_have_class("dot ")
        expect(alerts.filter(has_text="Trying again every few seconds")).to_have_count(0)
        expect(tray).to_contain_text("the server stopped before this job ended; start it again")
        expect(tray).to_contain_text("Measuring planted: failed")
        assert answer.inner_text() == written
        opened.screenshot("journey-started-again")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Tokens", exact=True).fill("8")
        opened.run()
        opened.ended()
        expect(alerts.filter(has_text="ended before they were complete")).to_have_count(0)
        assert answer.inner_text() not in ("", written)
        page.context.close()
        lost = ("Failed to load resource", "net::ERR_")  # what the browser itself logs of a server that is not there
        assert [one for one in opened.problems if not any(part in one for part in lost)] == []


def test_a_description_becomes_a_vector_that_steers(wide: Visit) -> None:
    page = wide.page
    wide.open("#/make")
    page.get_by_label("More of what?").fill("warm and cheerful, with delight in small things")
    page.get_by_label("And less of it is").fill("cold and gloomy, with contempt for everything")
    page.get_by_role("button", name="Propose pairs").click()
    expect(page.get_by_label("positive 4")).not_to_have_value("", timeout=JOB)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_label("Name", exact=True)).to_have_value("cheerful")
    wide.inspect("journey-describe-pairs")
    try:
        page.get_by_role("button", name="Find the vector").click()
        quotes = page.get_by_role("region", name="Quotes").get_by_role("article")
        expect(quotes).to_have_count(3, timeout=JOB)
        wide.ended()
        assert len({quote.inner_text().partition("\n")[2] for quote in quotes.all()}) == 3
        expect(quotes.last).to_contain_text("warm and cheerful")
        wide.inspect("journey-describe-card")
        page.get_by_role("button", name="Steer with it").click()
        expect(page.locator(".poles")).to_contain_text("cold and gloomy")
        expect(page.get_by_label("Strength of cheerful")).to_be_visible()
    finally:
        httpx2.delete(f"{wide.url}/v1/vectors/cheerful", timeout=SECONDS)


def test_the_plain_answer_stays_when_a_dial_is_moved_and_the_dials_become_a_profile_that_is_a_model_name(
    wide: Visit,
) -> None:
    wide.demonstrate()
    normal = wide.page.get_by_role("article", name="Plain").locator(".tokens")
    before = normal.inner_text()
    wide.page.get_by_label("Strength of sentiment").fill("0.5")
    wide.page.keyboard.press("Enter")
    expect(wide.page.get_by_role("article", name="Steered")).to_contain_text("sentiment 0.5")
    wide.ended()
    assert normal.inner_text() == before
    wide.page.get_by_role("button", name="Copy as code").click()
    dialog = wide.page.get_by_role("dialog")
    dialog.get_by_label("Save the dials as a profile").fill("gloomy-model")
    dialog.get_by_role("button", name="Save it").click()
    try:
        code = dialog.locator("pre")
        expect(code).to_contain_text("@gloomy-model")
        expect(code).not_to_contain_text("extra_body")
        dialog.get_by_role("button", name="Try it").click()
        expect(dialog).to_contain_text("It says: “")
        if importlib.util.find_spec("openai") is not None:
            assert len(run_snippet("OpenAI client", code.inner_text(), None)) > 20
        names = [model["id"] for model in httpx2.get(f"{wide.url}/v1/models", timeout=SECONDS).json()["data"]]
        assert any(name in code.inner_text() for name in names if name.endswith("@gloomy-model"))
        assert wide.violations() == []
        wide.screenshot("play-deploy")
    finally:
        httpx2.delete(f"{wide.url}/v1/profiles/gloomy-model", timeout=SECONDS)


def test_a_job_outlives_a_reload_in_the_tray_and_can_be_cancelled_there(wide: Visit) -> None:
    wide.open("#/library")
    wide.page.evaluate("sessionStorage.setItem('steering-server.card', JSON.stringify('sentiment'))")
    post(wide.url, "/v1/vectors/combine", {"name": "unmeasured", "terms": [{"vector": "sentiment", "weight": 1}]})
    wide.page.evaluate("sessionStorage.setItem('steering-server.card', JSON.stringify('unmeasured'))")
    wide.page.goto(f"{wide.url}/?again#/make")
    expect(wide.page.get_by_role("region", name="Quality")).to_contain_text("1,360 answers")
    with wide.page.expect_response("**/v1/evaluations*", timeout=JOB):  # a job has a name once the server has answered
        wide.page.get_by_role("button", name="Measure its strengths").click()
    try:
        _follow_in_the_tray(wide)
    finally:  # it would slow every test after this one
        for job in httpx2.get(f"{wide.url}/v1/jobs", timeout=SECONDS).json()["data"]:
            httpx2.delete(f"{wide.url}/v1/jobs/{job['id']}", timeout=SECONDS)


def _follow_in_the_tray(wide: Visit) -> None:
    tray = wide.page.locator(".tray")
    expect(tray).to_contain_text("1 job")
    expect(wide.page.get_by_role("list", name="Steps").locator("[aria-current]")).to_contain_text("Look and keep")
    wide.page.reload()
    expect(tray).to_contain_text("1 job")
    expect(wide.page.locator(".top-bar .facts")).to_contain_text("1 job,")
    wide.page.get_by_role("link", name="Play").click()
    tray.locator("summary").click()
    expect(tray).to_contain_text("Measuring unmeasured")
    expect(tray).to_contain_text(" / 2728", timeout=JOB)
    assert wide.violations() == []
    wide.screenshot("tray")
    tray.get_by_role("button", name="Stop").click()
    expect(tray).to_contain_text("Measuring unmeasured: stopped")


def test_the_second_click_of_a_double_click_runs_nothing(wide: Visit) -> None:
    asked: list[str] = []

    def empty(route: Route) -> None:
        route.fulfill(json={"data": [], "next_cursor": None, "warnings": []})

    def hold(route: Route) -> None:
        asked.append(route.request.url)

    wide.page.route("**/v1/vectors?*", empty)
    wide.page.route("**/v1/vectors/extract", hold)
    wide.page.route("**/v1/compare", hold)
    wide.open("#/compare")
    seed = wide.page.locator(".speed").inner_text()
    wide.page.get_by_role("button", name="Make the starter vectors").dblclick()
    expect(wide.page.get_by_role("region", name="Starter vectors")).to_contain_text("Making sentiment")
    assert wide.page.locator(".speed").inner_text() == seed
    assert [url.rpartition("/")[2] for url in asked] == ["extract"]


def test_csv_that_is_pasted_becomes_a_table(wide: Visit) -> None:
    wide.open("#/make")
    wide.page.evaluate("navigator.clipboard.writeText('positive,negative\\nArr matey,Hello friend\\nAye,Yes')")
    wide.page.get_by_label("positive 1").focus()
    wide.page.keyboard.press("Control+v")
    expect(wide.page.get_by_label("positive 1")).to_have_value("Arr matey")
    expect(wide.page.get_by_label("negative 2")).to_have_value("Yes")


def test_labels_of_the_map_of_vectors_do_not_overlap_and_open_a_card(wide: Visit, server: ServerProcess) -> None:
    for index in range(4):
        terms = [{"vector": "sentiment", "weight": 1}, {"vector": "formality", "weight": 0.02 * (index + 1)}]
        post(server.url, "/v1/vectors/combine", {"name": f"close-{index}", "terms": terms})
    wide.open("#/space")
    wide.ended()
    wide.page.get_by_role("button", name="All vectors").click()
    wide.page.get_by_role("button", name="Draw the map of all vectors").click()
    labels = wide.page.locator(".vector-map text")
    expect(labels.nth(len(STARTERS) + 3)).to_be_visible()
    boxes = [box for box in (label.bounding_box() for label in labels.all()) if box is not None]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            assert apart or one["y"] + one["height"] <= other["y"] + 3 or other["y"] + other["height"] <= one["y"] + 3
    wide.page.get_by_role("link", name="Open close-2").click()
    expect(wide.page.get_by_role("heading", name="close-2@1")).to_be_visible()


def test_the_documentation_is_read_without_another_host(wide: Visit) -> None:
    wide.open("")
    wide.page.keyboard.press("?")
    links = wide.page.get_by_role("list", name="Documentation").get_by_role("link")
    for address in [link.get_attribute("href") for link in links.all()]:
        assert address is not None
        answer = wide.page.request.get(f"{wide.url}{address}")
        assert answer.ok, address
        assert len(answer.text()) > 1000
