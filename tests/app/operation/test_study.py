"""`steer run`: a sweep whose server is killed in the middle is continued by the same command, and nothing that is done is done again."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import BadParameter

from app.cli.study import steps_of
from steering.errors import InvalidRequest
from tests.app.api.evaluation_bodies import PROMPTS
from tests.app.running import running
from tests.embedded.server_process import ServerProcess
from tests.polling import holds

SWEEP: dict[str, Any] = {
    "kind": "layer_sweep",
    "vector": "mood",
    "prompts": [f"{prompt} {n}" for prompt in PROMPTS for n in range(2)],
    "strengths": [1, 2, 3, 4],
    "max_tokens": 40,
}
LAYERS, PARTS, ALL_PARTS = 3, 2, 4
"""Layers of the model; finished parts after which the server is killed; parts of the sweep, one more than layers."""


def run(study: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli.main", "run", str(study), "--url", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def parts(folder: Path) -> dict[str, str]:
    """Returns when each finished part was stored."""
    with sqlite3.connect(f"file:{folder}/steering.sqlite3?mode=ro", uri=True) as database:
        return dict(database.execute("SELECT output_id, created_at FROM job_outputs"))


def result(study: Path) -> Any:
    (kept,) = study.with_name(f"{study.stem}.results").glob("*.json")
    return json.loads(kept.read_text())["result"]


@pytest.mark.timeout(600)
async def test_a_sweep_whose_server_was_killed_is_continued(tiny_folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yml"
    study.write_text(yaml.safe_dump({"steps": [{"evaluate": SWEEP}]}))
    settings = {
        "model": str(tiny_folder),
        "device": "cpu",
        "dtype": "float32",
        "compiled": "false",
        "lease_seconds": "1",
    }
    with ServerProcess(tmp_path, tmp_path, **settings) as server:
        directions = {str(layer): [1.0, *([0.1 * layer] * 31)] for layer in range(LAYERS)}
        server.client.register_vector("mood", directions)
        ended: list[subprocess.CompletedProcess[str]] = []
        running = threading.Thread(target=lambda: ended.append(run(study, server.url)))
        running.start()

        async def enough() -> bool:
            return len(parts(tmp_path)) >= PARTS

        await holds(enough, 120)
        server.process.send_signal(signal.SIGSTOP)  # what it has not finished until here it never finishes
        before = parts(tmp_path)
        assert PARTS <= len(before) < ALL_PARTS
        server.kill()
        running.join()
        assert ended[0].returncode == 1, ended[0].stderr
        server.start()
        again = run(study, server.url)
        assert again.returncode == 0, again.stderr
        after = parts(tmp_path)
        assert len(after) == ALL_PARTS
        assert {name: after[name] for name in before} == before
        found = result(study)
        assert {point["split"] for point in found["points"]} == {"validation", "test"}
        assert all(len(one["scores"]) == len(SWEEP["prompts"]) // 2 for one in found["scores"])
        assert run(study, "http://127.0.0.1:9").returncode == 0, "what is done needs no server"


def test_a_step_is_done_again_when_a_vector_that_it_may_use_was_made_again(tmp_path: Path) -> None:
    study, folder = tmp_path / "study.yml", tmp_path / "study.results"
    prompts = {"prompts": ["a", "b"], "strengths": [1], "random_directions": 1, "max_tokens": 4}
    evaluated = {"kind": "dose_response", "vector": "mood.v2", **prompts}

    def results(positive: list[str], url: str) -> list[Any]:
        extracted = {"name": "mood.v2", "positive": positive, "negative": ["bad day", "sad tea", "poor show"]}
        study.write_text(yaml.safe_dump({"steps": [{"extract": extracted}, {"evaluate": evaluated}]}))
        ended = run(study, url)
        assert ended.returncode == 0, ended.stderr
        paths = [folder / "01-extract-mood.v2.json", folder / "02-dose_response-mood.v2.json"]
        assert ended.stdout.count("study.results") == len(paths)
        assert sorted(folder.iterdir()) == paths
        return [json.loads(path.read_text()) for path in paths]

    with running() as url:
        first = results(["good day", "nice tea", "fine show"], url)
        assert results(["good day", "nice tea", "fine show"], "http://127.0.0.1:9") == first
        again = results(["good day", "nice tea", "happy show"], url)
    assert [one["result"]["vector"] for one in (first[1], again[1])] == ["mood.v2@1", "mood.v2@2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "'steps'"),
        ("steps: {}", "'steps'"),
        ("steps: [{train: {}}]", "step 1: expected one of extract, evaluate"),
        ("steps: [{evaluate: 3}]", "step 1: expected the fields"),
        ("steps: [", "not YAML"),
        ("steps: [{extract: {description: 2026-12-02}}]", "study.yml has what JSON has not: .* date"),
        ("steps: [{extract: {holdout: .nan}}]", "study.yml .* NaN is not finite"),
        ('steps: [{extract: {name: "\\ud800"}}]', "study.yml .* lone surrogate"),
    ],
)
def test_a_study_that_does_not_fit_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises((BadParameter, InvalidRequest), match=said):
        steps_of(text, "study.yml")


def test_numbers_of_layers_are_keys_of_a_study() -> None:
    assert steps_of("steps: [{extract: {name: a, 12: b}}]", "study.yml") == [("extract", {"name": "a", "12": "b"})]
