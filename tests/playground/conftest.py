"""Fixtures of the playground's tests: chromium, a server with the embedded model, and a page that reports what is wrong."""

import base64
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, expect, sync_playwright
from transformers import PreTrainedTokenizerFast

from app.api.system import is_built
from tests.conftest import REPOSITORY
from tests.embedded.server_process import ServerProcess
from tests.families import FAMILIES

WIDE, NARROW, LARGE = (1280, 900), (390, 844), (1440, 900)
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
ARTIFACTS = REPOSITORY / ".cache" / "screenshots"
PICTURES = "PICTURES" in os.environ
"""Whether a picture of every page is written to the artifacts, for people to look at: no test reads them."""
SECONDS = 120
expect.set_options(timeout=SECONDS * 1000)  # a busy machine answers slowly
JOB = 600 * 1000
"""The milliseconds that a job may take: one that generates hundreds of tokens needs more than a minute on a busy machine."""
STARTERS = ("sentiment", "formality")
DICTIONARY, SECOND = "planted", "second"
"""Names of the shared server's dictionary, whose folder test_sources.py writes, and of its second model."""


GLOOMY = {"vector": "sentiment", "strength": -1.67}
"""What a demonstration steers with: the measured end of its negative side."""


def short(samples: int, *controls: dict[str, Any]) -> str:
    """Returns the state of a view of Play whose answers are short."""
    state = {"sampling": {"max_tokens": 16, "n": samples}, "controls": controls}
    return base64.urlsafe_b64encode(json.dumps(state).encode()).decode().rstrip("=")


SHORT = short(1)
STORY = "steering-server.story"
"""Where the browser keeps that the story of Space was seen; the tests open the tool, unless they are of the story."""
PYTHON_WITH_VLLM = os.environ.get("PYTHON_WITH_VLLM")
"""The interpreter of an environment with vLLM. Where it is named, the servers of these tests run the engine `vllm`."""
VLLM = {"engine": "vllm", "compiled": "false", "cache_megabytes": "768", "max_running": "16"}
ARGUMENTS = [
    "--no-sandbox",  # the superuser of a container may not have one
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright without any browser of its own. Its synchronous interface leaves an event loop running, which asyncio's tests of the
    same process refuse, so it ends with its file."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's chromium: its build without windows where there is one, which takes a third of the processor time of a page."""
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert program is not None, "the tests need chromium: `make chromium` installs it"
    assert is_built(), "the playground is not built: `make web` builds it"
    started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
    yield started
    started.close()


def serving(folder: Path, cache: Path, **settings: str) -> ServerProcess:
    """Returns a server with the embedded model that has not started yet, in the engine that these tests run over."""
    chosen = settings if PYTHON_WITH_VLLM is None else {**settings, **VLLM}
    return ServerProcess(folder, cache, python=PYTHON_WITH_VLLM or "", **chosen)


@pytest.fixture(scope="session")
def cache(request: pytest.FixtureRequest) -> Path:
    """The folder of converted models, and of the compiled one unless the engine compiles by itself."""
    found: Path = request.getfixturevalue("compiled_cache" if PYTHON_WITH_VLLM is None else "model_cache")
    return found


@pytest.fixture(scope="session")
def server(
    cache: Path,
    hf_byte_tokenizer: PreTrainedTokenizerFast,
    run_folder: Path,
    one_at_a_time: Callable[[str], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    """A server with two starter vectors, a dictionary and a tiny second model, shared by the tests of a worker."""
    folder = tmp_path_factory.mktemp("playground")
    FAMILIES["llama"]().save_pretrained(folder / SECOND)
    hf_byte_tokenizer.save_pretrained(folder / SECOND)
    settings = {"dictionaries": f"{folder / DICTIONARY},{folder / 'absent'}", "scorer_model": str(folder / SECOND)}
    extracted = run_folder / "starters.sqlite3"
    database = folder / "steering.sqlite3"
    with ExitStack() as stack:
        # The first worker extracts the vectors, the others begin with its database.
        with one_at_a_time("starters"):
            if known := extracted.exists():
                shutil.copy(extracted, database)
            started = stack.enter_context(serving(folder, cache, **settings))
            if PYTHON_WITH_VLLM is None:
                started.until_compiled()
            for name in () if known else STARTERS:
                post(started.url, "/v1/vectors/extract?wait=true", {"name": name, "concept": name})
            if not known:
                with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(extracted)) as target:
                    source.backup(target)
        yield started


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a request that must succeed."""
    answer = httpx2.post(url + path, json=body, timeout=240)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


def state_of(address: str) -> str:
    """Returns the state in an address as JSON; empty where there is none."""
    coded = address.partition("?s=")[2]
    return base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()


@dataclass(slots=True)
class Visit:
    """A page of the playground. `problems` collects console errors, exceptions and requests to other hosts."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)

    def open(self, address: str) -> None:
        """Opens an address of the playground and waits until the model's name is shown."""
        self.page.goto(f"{self.url}/{address}")
        self.page.locator(".top-bar .dot:not(.waiting):not(.off)").wait_for()

    def vector(self, name: str) -> dict[str, Any]:
        """Returns what the server says about a vector."""
        found: dict[str, Any] = httpx2.get(f"{self.url}/v1/vectors/{name}", timeout=SECONDS).json()
        return found

    def capabilities(self) -> dict[str, Any]:
        """Returns what the server declares."""
        found: dict[str, Any] = httpx2.get(f"{self.url}/v1/capabilities", timeout=SECONDS).json()
        return found

    def remembered(self, part: str) -> None:
        """Waits until the state in the address has this text. The address follows the view with a delay."""
        self.page.wait_for_url(lambda address: part in state_of(address))

    def ended(self) -> None:
        """Waits until nothing runs any more. A picture of many texts takes minutes on a busy machine."""
        expect(self.page.locator("[aria-busy=true]")).to_have_count(0, timeout=JOB)

    def violations(self) -> list[str]:
        """Returns what axe-core finds on the page as it stands."""
        if not self.page.evaluate("'axe' in window"):
            axe = REPOSITORY / "app" / "web" / "node_modules" / "axe-core" / "axe.min.js"
            self.page.evaluate(axe.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [f"{one['id']}: {node['target']}" for one in found["violations"] for node in one["nodes"]]

    def screenshot(self, name: str) -> None:
        """Writes a picture of the whole page to the artifacts; with a window before it, of what is seen. Only for PICTURES."""
        self.page.evaluate("window.scrollTo(0, 0)")  # bars that stay in the window belong at the top
        if not PICTURES:
            return
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        whole = self.page.locator("dialog[open]").count() == 0
        self.page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=whole)

    def inspect(self, name: str) -> None:
        """Checks the page as it stands in both themes and three widths, with a picture of each."""
        for theme, (width, height) in product(THEMES, (NARROW, LARGE, WIDE)):
            self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            self.page.set_viewport_size({"width": width, "height": height})
            self.screenshot(f"{name}-{width}-{theme}")
            found = [] if width == LARGE[0] else self.violations()  # what it finds does not depend on 160 pixels more
            assert found == [], f"at {width} pixels, {theme}: {found}"
            assert self.overflow() <= 0, f"at {width} pixels the page scrolls sideways"
        self.page.emulate_media(color_scheme="light", reduced_motion="reduce")

    def overflow(self) -> int:
        """Returns by how many pixels the page is wider than the window."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return found

    def demonstrate(self, samples: int = 1) -> None:
        """Runs a demonstration whose answers are short, to its end."""
        self.open(f"#/compare?s={short(samples, GLOOMY)}")
        expect(self.page.locator(".poles")).to_contain_text(
            "gloomy"
        )  # the concepts are there, whose words the model is told
        with self.page.expect_response("**/v1/readout", timeout=JOB):  # the answers are read once they are complete
            self.run()
        self.ended()

    def run(self) -> None:
        """Clicks on Run."""
        self.page.get_by_role("button", name="Run", exact=True).click()


def visit(browser: Browser, url: str, size: tuple[int, int] = WIDE) -> Visit:
    """Opens an empty page whose problems are collected."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="light",
        reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(SECONDS * 1000)
    seen = f"localStorage.getItem('{STORY}') ?? localStorage.setItem('{STORY}', 'seen')"
    context.add_init_script(f"if (location.protocol !== 'about:') {{ {seen} }}")  # about:blank has no storage
    page = context.new_page()
    found = Visit(page, url)

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            found.problems.append(f"console: {message.text}")

    def on_request(request: Request) -> None:
        if not request.url.startswith((url, f"blob:{url}")):
            found.problems.append(f"request to another host: {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: found.problems.append(f"exception: {error}"))
    page.on("request", on_request)
    return found


@pytest.fixture
def wide(browser: Browser, server: ServerProcess) -> Iterator[Visit]:
    """A wide light page on the shared server. Fails the test when the page had a problem."""
    opened = visit(browser, server.url)
    yield opened
    opened.page.context.close()
    assert opened.problems == []
