"""The program for the openai package in docs/api.md runs as it is written."""

import re
from pathlib import Path

import pytest

from tests.app.running import running

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_openai_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    (program,) = [block for block in blocks if "from openai" in block]
    with running() as address:
        exec(compile(program.replace("http://127.0.0.1:8000", address), "docs/api.md", "exec"), {})
    assert capsys.readouterr().out.strip()
