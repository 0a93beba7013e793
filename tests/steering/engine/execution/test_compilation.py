"""Compiling in the background: where it cannot be done the engine says so and goes on, and nothing is left lying about."""

import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.execution.compiled.compilation import CompileRequest
from steering.engine.transformers.execution.compiled.compile_process import LEFT_OVER, SCRATCH, CompileProcess, sweep
from steering.model.loading import opened
from tests.engines import run, sampling
from tests.families import FAMILIES
from tests.polling import until

pytestmark = pytest.mark.timeout(900)  # its worker runs where nobody else wants the processors
GONE = 2**22 + 1
"""No process has this number: the kernel's own stay below."""


async def serving(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """An engine whose steps cannot be compiled answers, and closes."""
    request = CompileRequest("no such model", None, "float32", cache)
    engine = TransformersEngine(opened(FAMILIES["llama"](), tokenizer, name="tiny"), compile_request=request)
    assert len((await run(engine, GenerationRequest((65, 66), sampling(4)))).tokens) == 4
    assert engine._compilation is not None
    compiling = engine._compilation._thread
    await until(lambda: not compiling.is_alive(), 800)  # the worker builds our library before it looks for a model
    await engine.close()


async def test_a_cache_folder_that_cannot_be_is_logged(
    tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "file").write_text("no folder")
    with capture_logs() as logs:
        await serving(tmp_path / "file" / "cache", hf_byte_tokenizer)
    assert "steps_not_compiled" in [line["event"] for line in logs]


async def test_a_worker_that_fails_is_logged_and_leaves_no_scratch(
    tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The folder does not exist before: whoever serves a model from a folder has converted nothing into it."""
    cache = tmp_path / "cache"
    with capture_logs() as logs:
        await serving(cache, hf_byte_tokenizer)
    assert "steps_not_compiled" in [line["event"] for line in logs]
    assert "no such model" in (cache / "compile.log").read_text()
    assert not list(cache.glob(f"{SCRATCH}*"))


def test_closing_ends_the_worker_and_removes_its_scratch(tmp_path: Path) -> None:
    process = CompileProcess({"source": None}, tmp_path)
    (scratch,) = tmp_path.glob(f"{SCRATCH}*")
    assert scratch.is_dir()
    process.close()
    assert process.status is not None
    assert not scratch.exists()


def test_what_dead_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    names = {
        tmp_path / f"{SCRATCH}{GONE}-a": False,
        compiled / f"{GONE}-0a1b-prompt": False,
        tmp_path / f"{SCRATCH}{os.getpid()}-b": True,
        compiled / f"{os.getpid()}-0a1b-prompt": True,
        compiled / "0a1b2c3d-prompt": True,
        tmp_path / "converted-model": True,
    }
    long_ago = time.time() - 2 * LEFT_OVER
    for path in names:
        path.mkdir(parents=True)
        (path / "file").write_text("")
        os.utime(path, (long_ago, long_ago))
    young = tmp_path / f"{SCRATCH}{GONE}-young"
    young.mkdir()
    sweep(tmp_path)
    assert {path: path.exists() for path in names} == names
    assert young.exists()
