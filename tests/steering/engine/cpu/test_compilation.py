"""Compiling in the background: a failure is logged and leaves the engine eager, and nothing is left behind."""

import ast
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from transformers import PreTrainedTokenizerFast

import steering
from steering.engine.api import GenerationRequest
from steering.engine.cpu.compilation import TRACED, compile_process, graph_path
from steering.engine.cpu.executor import CompiledExecutor
from steering.engine.cpu.kernels.library import library_path
from steering.engine.options import EngineOptions
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.executor import CompileRequest
from steering.engine.transformers.factory import compile_request
from steering.model.cache_folder import (
    ABANDONED,
    COMPILING,
    CONVERTING,
    artifact_folder,
    remove_abandoned,
    scratch_folder,
)
from steering.model.device import DTYPES, takes_kernels
from steering.model.loading import load, opened
from tests.engines import compiled_soon, give_library, run, sampling
from tests.families import FAMILIES
from tests.polling import until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Compilations begin at once, at the usual priority."""
    with compiled_soon():
        yield


COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo "g++ 13" && exit
while [ $# -gt 1 ]; do [ "$1" = -o ] && target=$2; shift; done
cp {library} "$target"
"""


@pytest.fixture
def ready_compiler(tmp_path: Path, built_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that gives what it compiled before, in place of half a minute."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(library=built_library))
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))


async def events_of_serving(cache: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The log's events of an engine that cannot be compiled, answers all the same, and closes."""
    loaded = opened(FAMILIES["llama"](), tokenizer, name="tiny")
    with capture_logs() as logs:
        request = CompileRequest(loaded.info, "content", "no such model", None, cache, kernels=False)
        engine = TransformersEngine(loaded, compile_request=request)
        assert len((await run(engine, GenerationRequest((65, 66), sampling(4)))).tokens) == 4
        executor = engine._runner.executor
        assert isinstance(executor, CompiledExecutor)
        await until(
            lambda: not executor.compilation.is_alive(), 800
        )  # the worker builds a library before it loads a model
        assert engine.stats().executor == "eager"
        await engine.close()
    return [line["event"] for line in logs]


async def test_a_cache_folder_that_cannot_be_created_is_logged(
    tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "compilation_failed" in await events_of_serving(tmp_path / "file" / "cache", hf_byte_tokenizer)


@pytest.mark.usefixtures("ready_compiler")
async def test_a_worker_that_fails_is_logged_and_leaves_no_scratch(
    tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The cache folder does not exist before, as for a model that needs no conversion."""
    cache = tmp_path / "cache"
    assert "compilation_failed" in await events_of_serving(cache, hf_byte_tokenizer)
    assert "no such model" in (cache / "compile.log").read_text()
    assert not list(cache.glob(f"{COMPILING}*"))
    assert {path.stat().st_mode & 0o777 for path in (cache, cache / "compiled")} == {0o700}


@pytest.mark.usefixtures("kernels")
async def test_a_model_that_is_not_compiled_has_the_kernels(saved: Path, tmp_path: Path, built_library: Path) -> None:
    """As large ones in bfloat16 on CPUs without instructions for it. A row then has nearly the log probabilities that it has without."""
    loaded = load(str(saved), cache_dir=tmp_path, device="cpu", dtype="bfloat16")
    request = compile_request(loaded, EngineOptions(str(saved), tmp_path), graph=False)
    give_library(built_library, tmp_path)
    asked = GenerationRequest((65, 66), sampling(4, logprobs=0))
    plain = TransformersEngine(loaded)
    before = [event.logprob for event in (await run(plain, asked)).events]
    await plain.close()
    engine = TransformersEngine(loaded, compile_request=request)
    await until(lambda: engine.stats().executor == "eager+kernels", 60)
    executor = engine._runner.executor
    assert isinstance(executor, CompiledExecutor)
    await until(lambda: not executor.compilation.is_alive(), 60)
    after = [event.logprob for event in (await run(engine, asked)).events]
    assert engine.stats().executor == "eager+kernels"
    assert before[0] is not None
    assert after[0] == pytest.approx(before[0], abs=0.05)
    assert not list(artifact_folder(request.cache_dir).glob("*-pass"))
    await engine.close()


@pytest.mark.usefixtures("kernels", "ready_compiler")
async def test_the_worker_builds_the_library_alone(tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """For a model too large for a graph: it loads no model, which it would not find."""
    loaded = opened(FAMILIES["llama"]().to(torch.bfloat16), hf_byte_tokenizer, name="tiny")
    request = CompileRequest(loaded.info, "", "no such model", None, tmp_path / "cache", graph=False)
    with capture_logs() as logs:
        engine = TransformersEngine(loaded, compile_request=request)
        executor = engine._runner.executor
        assert isinstance(executor, CompiledExecutor)
        await until(lambda: not executor.compilation.is_alive(), 800)
        assert len((await run(engine, GenerationRequest((65, 66), sampling(2)))).tokens) == 2
        assert engine.stats().executor == "eager+kernels"
        await engine.close()
    assert not {"compilation_failed", "compiled_artifacts_refused"} & {line["event"] for line in logs}
    assert [path.name for path in artifact_folder(request.cache_dir).iterdir()] == [
        library_path(artifact_folder(request.cache_dir)).name
    ]


@pytest.mark.parametrize("mode", [0o770, 0o707])
async def test_a_cache_folder_that_others_can_write_is_refused(
    mode: int, tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    assert "compiled_artifacts_refused" in await events_of_serving(cache, hf_byte_tokenizer)
    assert not list(cache.iterdir())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("planted", ["writable file", "link", "link inside", "writable folder"])
async def test_artifacts_that_others_could_have_written_are_refused(
    planted: str, tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """They stand where complete artefacts are expected, and none of them is loaded. A graph that is refused costs no kernels."""
    loaded = opened(FAMILIES["llama"]().to(torch.bfloat16), hf_byte_tokenizer, name="tiny")
    request = CompileRequest(loaded.info, "content", "no such model", None, tmp_path)
    artifact_folder(request.cache_dir).mkdir(mode=0o700)
    plant(request, planted)
    with capture_logs() as logs:
        engine = TransformersEngine(loaded, compile_request=request)
        executor = engine._runner.executor
        assert isinstance(executor, CompiledExecutor)
        await until(lambda: not executor.compilation.is_alive())
        await run(engine, GenerationRequest((65, 66), sampling(1)))  # its thread has installed what it got
        assert engine.stats().executor == ("eager" if planted == "link" else "eager+kernels")
        await engine.close()
    assert [line["event"] for line in logs].count("compiled_artifacts_refused") == 1


def plant(request: CompileRequest, planted: str) -> None:
    """Puts artefacts in place, one of them untrusted."""
    library, target = library_path(artifact_folder(request.cache_dir)), graph_path(request) / "graph.so"
    library.touch(0o600)
    target.parent.mkdir(mode=0o700)
    target.touch(0o600)
    if planted == "writable file":
        target.chmod(0o622)
    elif planted == "writable folder":
        target.parent.chmod(0o722)
    else:
        path = library if planted == "link" else target
        other = path.with_name("other")
        path.rename(other)
        path.symlink_to(other)


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    info = opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny").info
    request = CompileRequest(info, "content", None, None, tmp_path)
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "compile.log").symlink_to(tmp_path / "victim")
    process = compile_process(request, tmp_path / "library.so", tmp_path / "graph")
    with pytest.raises(OSError, match=r"compile\.log"), process:
        pass
    assert (tmp_path / "victim").read_text() == "kept"
    assert not list(tmp_path.glob(f"{COMPILING}*"))


def test_closing_ends_the_worker_and_removes_its_scratch(
    tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    info = opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny").info
    request = CompileRequest(info, "content", None, None, tmp_path)
    with compile_process(request, tmp_path / "library.so", tmp_path / "graph") as process:
        (scratch,) = tmp_path.glob(f"{COMPILING}*")
        assert scratch.is_dir()
    assert process.returncode is not None
    assert not scratch.exists()


@pytest.mark.parametrize("prefix", [COMPILING, CONVERTING])
def test_scratch_of_ended_processes_is_removed_and_nothing_else(prefix: str, tmp_path: Path) -> None:
    with scratch_folder(tmp_path, prefix) as used:
        names = {
            tmp_path / f"{prefix}abandoned": False,
            used: True,
            tmp_path / "compiled" / "0a1b2c3d-prefill": True,
            tmp_path / "converted-model": True,
        }
        for path in names:
            path.mkdir(parents=True, exist_ok=True)
            (path / "file").write_text("")
            os.utime(path, (time.time() - 2 * ABANDONED,) * 2)
        young = tmp_path / f"{prefix}young"
        young.mkdir()
        remove_abandoned(tmp_path)
        assert {path: path.exists() for path in names} == names
        assert young.exists()
    assert not used.exists()


def graph_of(folder: Path, cache: Path, dtype: str = "auto") -> Path:
    """Where the graph of a model in a folder is kept."""
    loaded = load(str(folder), cache_dir=cache, device="cpu", dtype=dtype)
    return graph_path(compile_request(loaded, EngineOptions(str(folder), cache)))


@pytest.fixture
def saved(tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of the tiny model."""
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    hf_byte_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "change", [{"rms_norm_eps": 1e-2}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}]
)
def test_a_graph_is_not_used_for_another_configuration(change: dict[str, object], saved: Path, tmp_path: Path) -> None:
    """Engine A1, N8: these are constants of the graph, and no weight depends on them. Vectors fit as before."""
    before = graph_of(saved, tmp_path)
    assert graph_of(saved, tmp_path) == before
    fingerprint = load(str(saved), cache_dir=tmp_path, device="cpu").info.fingerprint
    config = json.loads((saved / "config.json").read_text())
    assert all(config[name] != value for name, value in change.items())
    (saved / "config.json").write_text(json.dumps({**config, **change}))
    assert graph_of(saved, tmp_path) != before
    assert load(str(saved), cache_dir=tmp_path, device="cpu").info.fingerprint == fingerprint


def test_a_graph_is_not_used_for_other_weights(saved: Path, tmp_path: Path) -> None:
    """Weights are constants of the graph too; the model's fingerprint samples 64 values of each. Its size and time stay as they were."""
    before, path = graph_of(saved, tmp_path), saved / "model.safetensors"
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert graph_of(saved, tmp_path) != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_whose_loops_have_a_number_of_threads_is_not_used_with_another(
    dtype: str, saved: Path, tmp_path: Path
) -> None:
    """As in a container with fewer processors over the same cache folder. Loops beside packed weights take the number when they run."""
    before, threads = graph_of(saved, tmp_path, dtype), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert (graph_of(saved, tmp_path, dtype) == before) == takes_kernels(DTYPES[dtype], torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert graph_of(saved, tmp_path, dtype) == before


def test_the_worker_compiles_no_other_model_than_the_engine_has(
    saved: Path, tmp_path: Path, built_library: Path
) -> None:
    """Files that change while the engine serves."""
    loaded = load(str(saved), cache_dir=tmp_path, device="cpu")
    request = compile_request(loaded, EngineOptions(str(saved), tmp_path))
    (saved / "config.json").write_text((saved / "config.json").read_text() + "\n")
    with compile_process(request, built_library, tmp_path / "graph") as process:
        assert process.wait(800) != 0
    assert "have changed since" in (tmp_path / "compile.log").read_text()
    assert not (tmp_path / "graph").exists()


NOT_TRACED = {
    "steering.engine.transformers.request": "passes are inputs of a graph",
    "steering.injection.slots": "the same: what steers is an input",
    "steering.injection.injector": "the same",
    "steering.injection.readouts": "read in callbacks, outside the graph",
    "steering.errors": "computes nothing",
    "steering.model.cache_folder": "where a graph is kept",
    "steering.model.fingerprint": "computes nothing that a graph holds",
    "steering.model.info": "facts",
    "steering.shapes": "types",
    "steering.threads": "where code runs",
    "steering.uploads": "copies inputs of a graph to their device",
}


def test_the_key_of_a_graph_covers_every_source_it_is_traced_from() -> None:
    """Whatever the traced sources import is traced too, or computes nothing of a graph."""
    package = Path(steering.__file__).parent
    traced = {path for name in TRACED for path in (sorted((package / name).rglob("*.py")) or [package / name])}
    own = (
        "engine/cpu",
        *(f"engine/transformers/{name}" for name in ("attention", "block_pool", "paged_cache", "executor")),
    )
    for path in traced:
        assert path.is_file(), path
        if not str(path.relative_to(package)).startswith(own):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("steering."):
                source = package.parent / node.module.replace(".", "/")
                files = {source.with_suffix(".py"), source / "__init__.py"}
                assert files & traced or node.module in NOT_TRACED, f"{path.name} imports {node.module}"
