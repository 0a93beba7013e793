"""The source has none of the constructs that execute or fetch untrusted input, trust the caller's address, or hide a disconnect.

`make lint` refuses most of them: the rules S of ruff, and the names that pyproject.toml bans.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "runs code of a model's folder": r"trust_remote_code=True",
    "hides a disconnect": r"\.middleware\(",
    "judges by the address as the caller wrote it": r"request\.url\.path|\.base_url\b.*request",
}
"""What no rule of ruff knows."""
REFUSED = {
    "import pickle": "TID251",
    "from cloudpickle import loads": "TID251",
    "import joblib": "TID251",
    "import torch; torch.load('f')": "TID251",
    "import urllib.request": "TID251",
    "import requests": "TID251",
    "from starlette.middleware.base import BaseHTTPMiddleware": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import os; os.system('ls')": "S605",
    "import subprocess; subprocess.run('ls', shell=True)": "S602",
    "import yaml; yaml.load('a', yaml.Loader)": "S506",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_not_in_the_tree(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    files = [*(ROOT / "app").rglob("*.py"), *(ROOT / "steering").rglob("*.py")]
    assert len(files) > 80
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line) and not line.lstrip().startswith("#")
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["app", "steering"])
@pytest.mark.parametrize(("line", "rule"), REFUSED.items())
def test_what_lint_refuses(line: str, rule: str, folder: str) -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format",
        "concise",
        "--stdin-filename",
        f"{folder}/new.py",
        "-",
    ]
    done = subprocess.run(command, input=f"{line}\n", capture_output=True, text=True, check=False, cwd=ROOT)
    assert f" {rule} " in done.stdout, done.stdout + done.stderr
