"""The memory of a model is planned before its weights are read, and what does not fit is refused in one sentence."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.options import EngineLimits, EngineOptions
from steering.engine.transformers.factory import open_engine
from steering.engine.transformers.paged_cache import probe_shapes
from steering.errors import ModelLoadFailed, OutOfMemory
from steering.model.layout import find_layout
from steering.model.loading import load
from steering.model.memory_plan import MemoryPlan, Serving, check_memory, plan_memory, position_bytes
from tests.architectures.configurations import tiny
from tests.families import FAMILIES, LLAMA_LIKE, build

CPU, NOTHING = torch.device("cpu"), Serving(0, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_planned_as_they_are_kept(family: str) -> None:
    model = FAMILIES[family]()
    kept = sum(shape.position_bytes for shape in probe_shapes(model, find_layout(model), CPU))
    assert position_bytes(model.config, torch.float32) == kept


def test_latent_attention_is_planned_by_what_the_engine_keeps() -> None:
    model = tiny("DeepseekV3ForCausalLM")
    kept = sum(shape.position_bytes for shape in probe_shapes(model, find_layout(model), CPU))
    assert position_bytes(model.config, torch.float32) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_weights_are_those_of_the_headers_in_the_dtype_they_are_loaded_in(
    dtype: torch.dtype, tied: bool, tmp_path: Path
) -> None:
    model = build("LlamaForCausalLM", **LLAMA_LIKE, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    plan = plan_memory(model.config, tmp_path, dtype, CPU, NOTHING)
    assert plan == MemoryPlan(model.num_parameters() * dtype.itemsize, 0, plan.remedies)


def test_the_plan_has_the_cache_and_nothing_for_steering(tiny_folder: Path, tiny_model: PreTrainedModel) -> None:
    config, one = tiny_model.config, position_bytes(tiny_model.config, torch.float32)
    free = plan_memory(config, tiny_folder, torch.float32, CPU, Serving(None, 2048))
    assert free.cache == 256 * one  # no more positions than the model's context has
    assert free.total == free.weights + free.cache, "tables of edits are less than a hundredth of the weights"
    fixed = plan_memory(config, tiny_folder, torch.float32, CPU, Serving(1 << 30, 2048))
    assert fixed.cache == 1 << 30
    assert "a lower STEERING_CACHE_MEGABYTES" in set(fixed.remedies) - set(free.remedies)


@pytest.mark.parametrize(("quantization", "bits"), [("bitsandbytes-8bit", 8), ("bitsandbytes-4bit", 4)])
def test_weights_that_are_quantized_while_they_are_loaded_take_less(
    quantization: str, bits: int, tiny_folder: Path, tiny_model: PreTrainedModel
) -> None:
    linear = [m.weight.numel() for m in tiny_model.model.modules() if isinstance(m, nn.Linear)]
    plain = plan_memory(tiny_model.config, tiny_folder, torch.float32, CPU, NOTHING).weights
    packed = plan_memory(tiny_model.config, tiny_folder, torch.float32, CPU, NOTHING, quantization).weights  # type: ignore[arg-type]
    assert plain - packed == sum(linear) * (32 - bits) // 8


def test_what_does_not_fit_is_refused_with_what_is_needed_what_is_there_and_what_helps() -> None:
    plan = MemoryPlan(16_100_000_000, 700_000_000, ("STEERING_QUANTIZATION", "a smaller model"))
    check_memory("big", plan, {"cuda:0": 10_000_000_000, "cuda:1": 6_800_000_000})
    with pytest.raises(OutOfMemory) as refusal:
        check_memory("big", plan, {"cuda:0": 12_000_000_000}, more_devices=True)
    assert refusal.value.message == (
        "big needs 16.8 GB (16.1 GB of weights, 0.7 GB of keys and values), and cuda:0 has 12.0 GB free; "
        "what helps: STEERING_QUANTIZATION, a smaller model, STEERING_DEVICE_MAP=auto"
    )


def test_an_engine_that_does_not_fit_is_refused_before_its_weights_are_read(
    tiny_folder: Path, tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    lines: list[str] = []
    limits = EngineLimits(cache_bytes=1 << 50)
    options = EngineOptions(str(tiny_folder), tmp_path, device="cpu", limits=limits, report=lines.append)
    with pytest.raises(
        OutOfMemory, match=r"^tiny-llama needs .* of keys and values.*, and cpu has .* STEERING_CACHE_MEGABYTES"
    ):
        open_engine(options)
    assert not any("Loading" in line for line in lines)


def test_shards_are_loaded_as_one_file_and_a_missing_one_is_named(
    tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    tiny_model.save_pretrained(folder, max_shard_size="50KB")
    hf_byte_tokenizer.save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    loaded = load(str(folder), cache_dir=tmp_path, device="cpu", dtype="float32")
    ids = torch.arange(8)[None]
    assert torch.equal(loaded.model(ids).logits, tiny_model(ids).logits)
    plan = plan_memory(tiny_model.config, folder, torch.float32, CPU, NOTHING)
    assert plan.weights == 4 * tiny_model.num_parameters()
    shards[1].unlink()
    message = rf"^sharded is not complete: 1 of {len(shards)} files of weights are missing, {shards[1].name} first$"
    with pytest.raises(ModelLoadFailed, match=message):
        load(str(folder), cache_dir=tmp_path, device="cpu", dtype="float32")
