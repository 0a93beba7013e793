"""Measures the playground in Debian's chromium: first paint, size, frames of a large map, input while three answers stream.

Usage: `python -m benchmarks.playground [--url http://127.0.0.1:8000]`, with `steer serve` running there, and the vector
`sentiment` made. Prints a line of JSON for each.
The map is synthetic (no model is needed to measure drawing); everything else comes from the server.
"""

import argparse
import base64
import gzip
import json
import random
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Route, ViewportSize, sync_playwright

STATIC = Path(__file__).resolve().parent.parent / "app" / "static"
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]
OPENINGS = 10
POINTS, LAYERS, DIMENSIONS = 5_000, 30, 576
WIDE: ViewportSize = {"width": 1280, "height": 900}

RECORD_PAINT = """() => {
  const useful = () => document.querySelector('textarea[aria-label=Prompt]') && document.querySelector('.rail a');
  const watch = () => useful() ? requestAnimationFrame(() => { window.usefulAt = performance.now(); })
                               : requestAnimationFrame(watch);
  watch();
}"""
"""Notes when the prompt can be typed, in the frame after it is in the document."""
RECORD_FRAMES = """() => {
  window.frames_ = []; let before = null;
  const tick = (now) => { if (before !== null) window.frames_.push(now - before); before = now; requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
}"""
RECORD_INPUT = """() => {
  window.inputs = []; window.longTasks = [];
  new PerformanceObserver((list) => list.getEntries().forEach((one) => window.inputs.push([one.name, one.duration])))
    .observe({type: 'event', durationThreshold: 16});
  new PerformanceObserver((list) => list.getEntries().forEach((one) => window.longTasks.push(one.duration)))
    .observe({type: 'longtask'});
}"""


def main() -> None:
    """Runs every measurement and prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--map", action="store_true", help="measures the map alone")
    arguments = parser.parse_args()
    url: str = arguments.url.rstrip("/")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium-headless-shell") or shutil.which("chromium"), args=ARGUMENTS
        )
        show("scripts_gzip_kB", script_sizes())
        if not arguments.map:
            show("first_paint_ms", first_paint(browser, url))
            show("input_while_streaming", input_while_streaming(browser, url))
        for dims in (2, 3):
            show(f"map_of_{dims}_dimensions", large_map(browser, url, dims))
        browser.close()


def show(name: str, found: dict[str, Any]) -> None:
    """Prints a measurement as one line of JSON."""
    print(json.dumps({name: found}), flush=True)


def new_page(browser: Browser) -> Page:
    """Opens a page without cache."""
    return browser.new_context(viewport=WIDE).new_page()


def first_paint(browser: Browser, url: str) -> dict[str, Any]:
    """Opens the page with an empty cache several times: when something is painted, and when the prompt can be typed."""
    contentful, useful = [], []
    for _ in range(OPENINGS):
        page = new_page(browser)
        page.add_init_script(f"({RECORD_PAINT})()")
        page.goto(url)
        page.get_by_role("textbox", name="Prompt", exact=True).wait_for()
        page.wait_for_timeout(200)  # the page's policy forbids scripts made of text, so that nothing polls in it
        contentful.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        useful.append(page.evaluate("window.usefulAt"))
        page.context.close()
    return {"first_contentful": summary(contentful), "prompt_can_be_typed": summary(useful)}


def script_sizes() -> dict[str, float]:
    """Returns the compressed size of all scripts, and of those that the first place loads."""
    sizes = {path.name: len(gzip.compress(path.read_bytes())) / 1000 for path in (STATIC / "assets").glob("*.js")}
    later = ("Space", "Make", "Read", "Library", "Chart", "QualityCard")
    first = sum(size for name, size in sizes.items() if not name.startswith(later))
    return {"all": round(sum(sizes.values()), 1), "first_place": round(first, 1)}


def large_map(browser: Browser, url: str, dims: int) -> dict[str, Any]:
    """Plays a map of 5,000 texts through 30 layers and measures every frame, then drags the slider along."""
    page = new_page(browser)
    page.add_init_script("localStorage.setItem('steering-server.story', 'seen')")  # the tool, not the story
    page.route("**/v1/capabilities", allow_points)
    page.route("**/v1/latent-space", lambda route: answer_map(route, dims))
    page.goto(f"{url}/#/space")
    page.get_by_role("combobox", name="Texts").select_option("own")
    table = "\n".join(f"text {i}\t{i % 2}" for i in range(POINTS)).encode()
    page.get_by_label("Open a CSV file").set_input_files({"name": "t.tsv", "mimeType": "text/plain", "buffer": table})
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("img", name=f"{POINTS} texts").wait_for()
    slider = page.get_by_role("slider", name="Layer")
    page.evaluate(RECORD_FRAMES)
    page.get_by_role("button", name="Play").click()
    page.wait_for_timeout(6_000)
    playing = page.evaluate("window.frames_.splice(0)")
    page.get_by_role("button", name="Pause").click()
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.evaluate("window.frames_.splice(0)")
    for step in range(120):
        page.mouse.move(box["x"] + 2 + (box["width"] - 4) * step / 119, box["y"] + box["height"] / 2)
    dragging = page.evaluate("window.frames_.splice(0)")
    page.mouse.up()
    page.context.close()
    return {"dims": dims, "playing_frame_ms": summary(playing), "dragging_frame_ms": summary(dragging)}


def allow_points(route: Route) -> None:
    """Answers as the server does, with room for all points: nothing of the map is computed there."""
    body = route.fetch().json()
    body["limits"]["max_texts"] = POINTS
    route.fulfill(json=body)


def answer_map(route: Route, dims: int) -> None:
    """Answers with points of two groups that part from layer to layer."""
    rng = random.Random(7)
    noise = [[rng.gauss(0, 1) for _ in range(dims)] for _ in range(POINTS)]

    def points(layer: int) -> list[list[float]]:
        return [
            [
                round(x + (0.1 * layer * (1 - 2 * (index % 2)) if axis == 0 else rng.gauss(0, 0.2)), 4)
                for axis, x in enumerate(one)
            ]
            for index, one in enumerate(noise)
        ]

    layers = [
        {"layer": layer, "points": points(layer), "explained_variance": None, "separability": None, "segments": []}
        for layer in range(LAYERS)
    ]
    body: dict[str, Any] = {
        "model": "synthetic",
        "method": "pca",
        "vectors": {},
        "layers": layers,
        "embedding": None,
        "path": None,
        "warnings": [],
    }
    route.fulfill(json=body)


def input_while_streaming(browser: Browser, url: str) -> dict[str, Any]:
    """Types into the prompt and moves a slider while three answers stream; the time from each input to the next paint."""
    page = new_page(browser)
    asked = {"prompt": "How is your new apartment?", "controls": [{"vector": "sentiment", "strength": -1}]}
    state = json.dumps({**asked, "sampling": {"max_tokens": 400, "n": 1}, "reader": "sentiment"})
    page.goto(f"{url}/#/compare?s={base64.urlsafe_b64encode(state.encode()).decode().rstrip('=')}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("article", name="Told in words").locator(".token").nth(5).wait_for(state="attached")
    page.evaluate(RECORD_INPUT)
    page.evaluate(RECORD_FRAMES)
    page.get_by_role("textbox", name="Prompt", exact=True).press_sequentially(
        " And how is the garden behind it?", delay=60
    )
    slider = page.get_by_label("Strength of sentiment")
    for _ in range(40):
        slider.press("ArrowRight", delay=20)
    streaming = page.get_by_role("button", name="Stop").is_visible()
    inputs = [duration for name, duration in page.evaluate("window.inputs") if name in ("keydown", "input", "keyup")]
    found = {
        "still_streaming_at_the_end": streaming,
        "tokens_shown": page.locator(".token").count(),
        "input_to_paint_ms": summary(inputs),
        "frame_ms": summary(page.evaluate("window.frames_")),
        "tasks_over_50_ms": len(page.evaluate("window.longTasks")),
    }
    page.context.close()
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Returns count, median, 95th percentile and maximum. Chromium reports only inputs that took 16 ms or more."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median": round(statistics.median(ordered), 1),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
        "max": round(ordered[-1], 1),
    }


if __name__ == "__main__":
    main()
