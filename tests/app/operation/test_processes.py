"""`steer serve` and `steer demo` as whole processes: they work, end with 0, and leave nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest

from app.core.process_settings import SPIN_COUNT
from steering.client import ApiError, Client
from tests.app.addresses import announced


def test_serve_serves_a_model_and_exits_with_0_when_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli.main", "serve", "--model", str(tiny_folder), "--port", "0"]
    command += ["--database", "memory://", "--device", "cpu", "--dtype", "float32", "--set", "max_arms=3"]
    log, plain = tmp_path / "log", {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, env={**plain, "OMP_DISPLAY_ENV": "verbose"})

    def wait(until: float) -> None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)

    try:
        until = time.monotonic() + 120
        while (address := announced(log.read_text())) is None:
            wait(until)
        with Client(address) as client:
            while not _ready(client):
                wait(until)
            assert client.capabilities().limits["max_arms"] == 3
            assert client.generate("abc", max_tokens=3, seed=1).usage.completion_tokens <= 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert sys.platform != "linux" or f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in log.read_text()
    finally:
        process.kill()
        process.wait()


def _ready(client: Client) -> bool:
    try:
        client.health()
    except ApiError:
        return False
    return True


@pytest.mark.embedded
@pytest.mark.timeout(900)
def test_demo_shows_sentiment_moving_both_ways_and_leaves_nothing_behind(model_cache: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "STEERING_CACHE_DIR": str(model_cache), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.main", "demo"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sentiment@1" in done.stdout
    assert "cheerful" in done.stdout
    readouts: dict[str, list[float]] = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) > 2 and re.fullmatch(r"base|[+-][\d.]+", cells[0]):
            readouts.setdefault(cells[0][:1], []).append(float(cells[2]))
    # Single answers of a greedy base model may already stand at a pole; the means over the prompts are ordered.
    down, base, up = (mean(readouts[sign]) for sign in "-b+")
    assert len(readouts["b"]) == 2
    assert down < base < up
    assert list(tmp_path.iterdir()) == []
