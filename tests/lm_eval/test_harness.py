"""lm-evaluation-harness, unmodified, as a client of a server process: a multiple-choice task of ours, plain and steered.

Runs where the harness is installed: `make test-lm-eval`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.app.addresses import announced

REPOSITORY = Path(__file__).resolve().parents[2]
TASK = REPOSITORY / "examples" / "lm_eval"
HARNESS = str(Path(os.environ.get("LM_EVAL", REPOSITORY / ".venv-lm-eval" / "bin" / "lm-eval")).absolute())
pytestmark = pytest.mark.skipif(shutil.which(HARNESS) is None, reason="needs the harness: make test-lm-eval")


@pytest.fixture
def address(tiny_folder: Path, tmp_path: Path) -> Iterator[str]:
    """A server in float32 with a profile `mood`."""
    command = [sys.executable, "-m", "app.cli.main", "serve", "--model", str(tiny_folder), "--port", "0"]
    command += ["--database", "memory://", "--device", "cpu", "--dtype", "float32"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        until = time.monotonic() + 120
        while (found := announced(log.read_text())) is None or not _ready(found):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        directions = {"1": torch.randn(32, generator=torch.Generator().manual_seed(0)).tolist()}
        vector = {"name": "mood", "directions": directions, "scale": {"1": 1.0}}
        assert httpx2.post(f"{found}/v1/vectors", json=vector, timeout=60).status_code == 201
        profile = {"interventions": [{"vector": "mood", "strength": 4.0}]}
        assert httpx2.put(f"{found}/v1/profiles/mood", json=profile, timeout=60).status_code == 200
        yield found
    finally:
        process.kill()
        process.wait()


def _ready(address: str) -> bool:
    """Waits long for the answer of a server that is busy loading."""
    return httpx2.get(f"{address}/health/ready", timeout=60).is_success


def measured(address: str, model: str, tokenizer: Path, output: Path) -> list[list[float]]:
    """Runs the task. Returns the log-likelihood of each choice of each document."""
    arguments = f"model={model},base_url={address}/v1/completions,tokenizer={tokenizer},tokenizer_backend=huggingface"
    command = [HARNESS, "run", "--model", "local-completions", "--model_args", arguments + ",max_length=200"]
    command += ["--tasks", "feelings", "--include_path", str(TASK), "--output_path", str(output), "--log_samples"]
    environment = {**os.environ, "HF_HOME": str(output / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, cwd=TASK, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = output.rglob("samples_feelings_*.jsonl")
    samples = [json.loads(line) for line in found.read_text().splitlines()]
    samples.sort(key=lambda one: one["doc_id"])
    return [[float(resp[0][0]) for resp in one["resps"]] for one in samples]


def computed(folder: Path) -> list[list[float]]:
    """Returns the same, as transformers computes them."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = [json.loads(line) for line in (TASK / "feelings.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        scores = []
        for choice in row["choices"]:
            before = tokenizer(row["beginning"], add_special_tokens=False)["input_ids"]
            text = f"{row['beginning']} {choice}"
            whole = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                logprobs = model(whole).logits.log_softmax(-1)[0]
            scores.append(sum(float(logprobs[i - 1, whole[0, i]]) for i in range(len(before), whole.shape[1])))
        found.append(scores)
    return found


def test_its_loglikelihoods_equal_transformers_and_a_profile_changes_them(
    address: str, tiny_folder: Path, tmp_path: Path
) -> None:
    plain = measured(address, tiny_folder.name, tiny_folder, tmp_path / "plain")
    steered = measured(address, f"{tiny_folder.name}@mood", tiny_folder, tmp_path / "steered")
    expected = computed(tiny_folder)
    assert plain == [pytest.approx(row, abs=1e-4) for row in expected]
    differences = [abs(a - b) for one, two in zip(plain, steered, strict=True) for a, b in zip(one, two, strict=True)]
    assert min(differences) > 0.01
