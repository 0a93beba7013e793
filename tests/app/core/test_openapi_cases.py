"""schemathesis with all checks over the whole OpenAPI document, against a server process with a tiny model.

`make fuzz` generates more cases for each operation: OPENAPI_CASES=40 are more than 2,000.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.app.addresses import announced

HERE = Path(__file__).parent
CASES = int(os.environ.get("OPENAPI_CASES", "2"))
KEY = "sk-of-the-generated-cases"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def address(tiny_folder: Path, tmp_path: Path) -> Iterator[str]:
    """A server in its default configuration but for its model, with a key: without one every key is accepted. It compiles nothing,
    which takes longer than the test."""
    command = [sys.executable, "-m", "app.cli.main", "serve", "--model", str(tiny_folder), "--port", "0"]
    command += ["--database", f"sqlite:///{tmp_path / 'store.sqlite3'}", "--device", "cpu"]
    log, settings = tmp_path / "log", {"STEERING_API_KEYS": KEY, "STEERING_COMPILED": "false"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, env={**os.environ, **settings})
    try:
        until = time.monotonic() + 120
        while (found := announced(log.read_text())) is None or not _ready(found):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield found
        assert process.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.kill()
        process.wait()


def _ready(address: str) -> bool:
    return httpx2.get(f"{address}/health/ready", timeout=60).status_code == 200


def test_no_generated_request_meets_an_error_of_the_server_or_an_undeclared_answer(
    address: str, tmp_path: Path
) -> None:
    body = {"name": "mood", "directions": {"1": [1.0] * 32}}
    assert httpx2.post(f"{address}/v1/vectors", json=body, headers=HEADERS, timeout=60).status_code == 201
    profile = {"interventions": [{"vector": "mood", "strength": 0.1}]}
    assert httpx2.put(f"{address}/v1/profiles/mood", json=profile, headers=HEADERS, timeout=60).status_code == 200
    document = tmp_path / "openapi.json"
    document.write_bytes(httpx2.get(f"{address}/openapi.json", headers=HEADERS, timeout=60).content)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")]
    command += ["run", str(document), "--url", address, "--header", f"Authorization: Bearer {KEY}", "--checks", "all"]
    command += ["--phases", "examples,fuzzing,stateful", "--max-examples", str(CASES), "--continue-on-failure"]
    command += ["--suppress-health-check", "all", "--no-color", "--warnings", "off"]
    if "OPENAPI_CASES" in os.environ:
        command += ["--generation-database", "none"]
    else:
        command += ["--generation-deterministic", "--no-shrink"]  # the same cases in every run of the tests
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.app.core.schemathesis_hooks"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    print("\n".join(line[:1000] for line in done.stdout.splitlines()))
    assert done.returncode == 0, done.stderr
