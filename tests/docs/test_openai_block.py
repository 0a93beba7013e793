"""The program for the openai package in docs/api.md and that of docs/operating.md run as they are written."""

import re
from pathlib import Path

import pytest

from tests.app.running import running
from tests.docs.execution import executed

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROGRAMS = [("api.md", "from openai"), ("operating.md", "set_policy")]


@pytest.mark.parametrize(("page", "words"), PROGRAMS)
def test_the_program_runs(page: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (program,) = [block for block in blocks if words in block]
    with running() as address:
        executed(program.replace("http://127.0.0.1:8000", address), page)
    assert capsys.readouterr().out.strip()
