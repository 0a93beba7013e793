"""What README and quickstart tell a newcomer to type is accepted by a server, in the order in which it stands."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.app.running import running

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGES = ["README.md", "docs/quickstart.md", "docs/extraction.md"]
_CURL = re.compile(
    r"curl -s (?:-X (?P<method>[A-Z]+) )?'?localhost:8000(?P<path>[^\s']+)'?[\s\\]+"
    r"-H 'content-type: application/json'[\s\\]+-d '(?P<body>\{.*?\})'\n",
    re.DOTALL,
)


@pytest.fixture
def address() -> Iterator[str]:
    with running() as found:
        yield found


@pytest.mark.parametrize("page", PAGES)
def test_every_request_and_program_of_a_page_works(page: str, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    sent = 0
    for language, block in blocks:
        if language == "python":
            program = block.replace("http://127.0.0.1:8000", address).replace("Client()", f"Client({address!r})")
            names: dict[str, Any] = {}
            exec(compile(program, page, "exec"), names)
            for left in (one for one in names.values() if isinstance(one, OpenAI)):
                left.close()  # its socket would be found open at some later time
            continue
        assert block.count("curl ") == len(_CURL.findall(block)), f"a request that this test does not read:\n{block}"
        for request in _CURL.finditer(block):
            method, path, body = request["method"] or "POST", request["path"], json.loads(request["body"])
            answer = httpx2.request(method, address + path, json=body, timeout=60)
            assert answer.status_code < 300, f"{path}: {answer.text}"
            sent += 1
    assert sent > 0
    capsys.readouterr()
