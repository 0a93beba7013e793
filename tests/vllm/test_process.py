"""`steer serve --engine vllm` as a process: it serves, and a dead worker ends it with exit code 3."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.app.addresses import announced

START_SECONDS = 480.0


@pytest.fixture
def served(tiny_vllm_folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [sys.executable, "-m", "app.cli.main", "serve", "--engine", "vllm", "--model", str(tiny_vllm_folder)]
    command += ["--port", "0", "--dtype", "float32", "--database", "memory://", "--cache-dir", str(tmp_path)]
    for setting in ("compiled=false", "kernels=false", "cache_megabytes=64", "max_running=8"):
        command += ["--set", setting]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield process, ready_address(process, log)
    finally:  # also where it was not ready in time: it would slow down every later test
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def ready_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Waits until the server is ready."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        address = announced(log.read_text())
        if address is not None and httpx2.get(f"{address}/health/ready", timeout=60).status_code == 200:
            return address
        time.sleep(0.5)
    return pytest.fail(log.read_text()[-2000:])


def test_it_serves_until_a_worker_dies(served: tuple[subprocess.Popen[bytes], str]) -> None:
    process, address = served
    answer = httpx2.post(f"{address}/v1/generate", json={"prompt": "abc", "max_tokens": 5}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert httpx2.get(f"{address}/v1/capabilities", timeout=60).json()["engine"] == "vllm"
    children = psutil.Process(process.pid).children(recursive=True)
    worker = next(child for child in children if "Worker" in " ".join([child.name(), *child.cmdline()]))
    worker.kill()
    statuses = []
    # without a pause: the port is closed a moment after the server has noticed, which it looks for once a second
    with httpx2.Client(base_url=address, timeout=60) as client:
        while process.poll() is None:
            try:
                statuses.append(client.get("/health/ready").status_code)
            except httpx2.TransportError:
                time.sleep(0.01)
    assert process.wait(60) == 3
    assert 503 in statuses
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, [child.name() for child in alive]
