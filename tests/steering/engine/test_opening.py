"""Opening an engine: which dtype `auto` is, and what large models have of compiled execution."""

import asyncio
from pathlib import Path

import pytest
import torch
from torch._inductor import config
from transformers import PreTrainedTokenizerFast

from steering.engine.cpu.executor import CompiledExecutor
from steering.engine.options import EngineOptions
from steering.engine.transformers import factory
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.factory import kernels_cover, open_engine
from steering.model.device import has_native_bfloat16, needs_kernels
from steering.model.loading import load
from tests.families import FAMILIES

CPU = torch.device("cpu")
EMULATED = needs_kernels(torch.bfloat16, CPU)
needs_emulation = pytest.mark.skipif(not EMULATED, reason="the processor multiplies bfloat16 itself, or has no AVX2")


def saved(family: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> EngineOptions:
    FAMILIES[family]().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return EngineOptions(str(folder / "model"), folder, device="cpu")


def opened(family: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> TransformersEngine:
    return open_engine(saved(family, folder, tokenizer))


@pytest.mark.parametrize(
    ("family", "covered"),
    [("llama", True), ("gpt2", False), ("bloom", False)],
    ids=["linear", "Conv1D", "own attention"],
)
def test_auto_is_bfloat16_where_the_model_runs_fast_in_it(
    family: str, covered: bool, tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = opened(family, tmp_path, hf_byte_tokenizer)
    asyncio.run(engine.close())
    fast = has_native_bfloat16(CPU) or (EMULATED and covered)
    assert engine.info.dtype == ("bfloat16" if fast else "float32")


@needs_emulation
def test_auto_is_float32_where_no_compiler_can_build_the_kernels(
    tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    options = saved("llama", tmp_path, hf_byte_tokenizer)
    loaded = load(options.model, cache_dir=tmp_path, device="cpu", kernels=True)
    assert kernels_cover(loaded)
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):  # in this thread alone
        assert not kernels_cover(loaded)
        engine = factory._opened(options)
    asyncio.run(engine.close())
    assert engine.info.dtype == "float32"


@needs_emulation
def test_a_large_model_gets_the_kernels_alone(tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    engine = factory._opened(saved("llama", tmp_path, hf_byte_tokenizer), largest=0)
    asyncio.run(engine.close())
    executor = engine._runner.executor
    assert isinstance(executor, CompiledExecutor)
    assert not executor.compilation.request.graph
