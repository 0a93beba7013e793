"""Baked weights give the logits of the served steering, on architectures that differ in their linear layers; what weights cannot do is refused."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec
from steering.engine.transformers.engine import TransformersEngine
from steering.errors import UnsupportedParameter
from steering.lab.bake import BakeRequest, bake, bake_model, plain_logits, put, report, write_lora
from steering.model.layout import find_layout
from steering.model.loading import load
from steering.model.verification import verify_layout
from steering.plan.types import DoseGuard, SteeringPlan
from steering.shapes import Logits
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from tests.engines import engine_over, family_engine
from tests.families import D_MODEL, FAMILIES
from tests.plans import Vectors, plan_for, vectors_for
from tests.steering.model.tiny_gguf import write_tiny_gguf

TEXTS = [tuple(b"The answer to that is"), tuple(b"Once upon a time")]
EDITS: list[dict[str, Any]] = [
    {"vector": "alpha", "operation": "ablate", "hook": "attention", "layers": [0, 1]},
    {"vector": "beta", "operation": "replace", "to": "gamma", "hook": "mlp", "layers": [1]},
    {"vector": "alpha", "operation": "ablate", "hook": "mlp", "layers": [1], "strength": 0.7},
    {"operation": "ablate", "hook": "attention", "head": 2, "layers": [1]},
    {"operation": "ablate", "hook": "attention", "head": 2, "layers": [1], "strength": 0.5},
]
"""What needs no bias. The shares of a head that is ablated twice add up."""
CONSTANTS: list[dict[str, Any]] = [
    {"vector": "gamma", "strength": 0.5, "layers": [0, 2]},
    {"vector": "delta", "strength": -0.4, "hook": "attention", "layers": [2]},
    {"vector": "alpha", "operation": "apply", "hook": "mlp", "layers": [0]},
]


async def served(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: list[dict[str, Any]]
) -> tuple[SteeringPlan, list[Logits]]:
    async with engine_over(model, tokenizer) as engine:
        plan = await plan_for(items, vectors_for(engine.info), engine.info)
        prompts = [CapturePrompt(ids, plan) for ids in TEXTS]
        captures = await engine.capture(prompts, CaptureSpec(layers=(), logits=True))
    return plan, [one.logits for one in captures if one.logits is not None]


def laid_out(model: PreTrainedModel) -> Any:
    return verify_layout(model, find_layout(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
async def test_baked_weights_give_the_logits_of_the_served_steering(
    family: str, dtype: torch.dtype, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Also after they are written and loaded: Llama gets biases by its configuration, GPT-2 has transposed weights."""
    plan, expected = await served(FAMILIES[family]().to(dtype), hf_byte_tokenizer, EDITS + CONSTANTS)
    model = FAMILIES[family]().to(dtype)
    plain = list(plain_logits(model, TEXTS))
    layers = bake(model, laid_out(model), plan)
    put(model, layers)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    found = report(layers, expected, plain, list(plain_logits(loaded, TEXTS)))
    exact = dtype == torch.float32
    assert found.tokens == sum(map(len, TEXTS))
    assert found.largest_logit < (2e-4 if exact else 0.5)
    assert found.kl < (1e-6 if exact else 0.02)
    assert found.unsteered_kl > 0.1, "it must steer, or the agreement says nothing"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
async def test_a_lora_gives_the_logits_of_the_served_steering(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Applied here as W + B A, which is what PEFT does with its alpha at its rank."""
    plan, expected = await served(FAMILIES[family](), hf_byte_tokenizer, EDITS)
    model = FAMILIES[family]()
    layers = [layer for layer in bake(model, laid_out(model), plan) if layer.factors]
    for layer in layers:
        layer.constant = False  # biases of GPT-2 change with its weights
    write_lora(layers, tmp_path, "tiny")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(layers)
    for layer in layers:
        a, b = (tensors[f"base_model.model.{layer.name}.lora_{part}.weight"] for part in "AB")
        change = b @ a
        with torch.no_grad():
            module: Any = layer.module
            module.weight += change.T if family == "gpt2" else change
            if layer.bias is not None:
                module.bias.copy_(layer.bias)
    logits = list(plain_logits(model, TEXTS))
    assert all(torch.allclose(one, other, atol=2e-4) for one, other in zip(logits, expected, strict=True))


REFUSED: Mapping[str, tuple[str, list[dict[str, Any]], str]] = {
    "an edit of the residual": (
        "llama",
        [{"vector": "alpha", "operation": "ablate"}],
        "no weights of the block can do",
    ),
    "a norm behind the MLP": ("gemma2", [{"vector": "alpha"}], "at the hook point 'mlp' the same edit"),
    "no bias": ("mistral", [{"vector": "alpha"}], "MistralForCausalLM has no bias at model.layers.1.mlp.down_proj"),
    "experts": ("mixtral", [{"vector": "alpha", "hook": "mlp"}], "does not end in one linear layer"),
    "a condition": (
        "llama",
        [{"vector": "alpha", "when": {"vector": "beta", "above": 0.0, "layer": 0}}],
        "a condition cannot be baked",
    ),
    "a scope": ("llama", [{"vector": "alpha", "scope": {"tokens": "generated"}}], "a scope cannot be baked"),
    "a rotation": ("llama", [{"vector": "alpha", "operation": "rotate", "degrees": 9.0}], "rotate cannot be baked"),
    "a clamp": (
        "llama",
        [{"vector": "alpha", "operation": "clamp", "low": 0.0, "hook": "mlp"}],
        "ReLU of the residual",
    ),
    "nothing": ("llama", [{"vector": "alpha", "strength": 0.0}], "the steering changes nothing"),
    "a share of |r|": ("llama", [{"vector": "alpha", "unit": "relative"}], "shares of"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_weights_cannot_do_is_refused_by_name(case: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    family, items, message = REFUSED[case]
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors: dict[str, ConceptVector] = vectors_for(engine.info)
        plan = await plan_for([{"layers": [1], **item} for item in items], vectors, engine.info)
    model = FAMILIES[family]()
    with pytest.raises(UnsupportedParameter, match=message):
        put(model, bake(model, laid_out(model), plan))


async def test_a_lora_takes_no_constant_and_weights_no_guard(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        added = await plan_for([{"vector": "alpha", "layers": [1]}], vectors, engine.info)
        bounded = await plan_for([{"vector": "alpha", "layers": [1]}], vectors, engine.info, DoseGuard(0.2, "clamp"))
    model = FAMILIES["llama"]()
    with pytest.raises(UnsupportedParameter, match="a LoRA has no bias"):
        write_lora(bake(model, laid_out(model), added), tmp_path, "tiny")
    with pytest.raises(UnsupportedParameter, match="dose guard"):
        bake(model, laid_out(model), bounded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_gguf_file_is_written_that_the_server_loads_with_the_served_logits(dtype: str, tmp_path: Path) -> None:
    """The file keeps its metadata and its other weights, of which some are quantized; Llama gets biases that it had not."""
    source, output = tmp_path / "tiny.gguf", tmp_path / "new" / "baked.gguf"
    model = FAMILIES["llama"]()
    assert isinstance(model, LlamaForCausalLM)
    write_tiny_gguf(model, source, {"ffn_down": "Q8_0", "attn_q": "Q8_0"})
    loaded = load(str(source), cache_dir=tmp_path, device="cpu", dtype=dtype)
    engine, vectors = TransformersEngine(loaded), vectors_for(loaded.info)
    plan = await plan_for(EDITS + CONSTANTS, vectors, loaded.info)
    captures = await engine.capture([CapturePrompt(ids, plan) for ids in TEXTS], CaptureSpec((), logits=True))
    await engine.close()
    spec = SteeringSpec.model_validate({"interventions": EDITS + CONSTANTS})
    request = BakeRequest(str(source), spec, output, tmp_path, dtype=dtype)
    found = await bake_model(request, Vectors(vectors), lambda _step: None)
    baked = load(str(output), cache_dir=tmp_path, device="cpu", dtype=dtype)
    exact = dtype == "float32"
    for one, capture in zip(plain_logits(baked.model, TEXTS), captures, strict=True):
        assert capture.logits is not None
        assert torch.allclose(one, capture.logits, atol=2e-4 if exact else 0.5)
    assert found.kl < (1e-6 if exact else 0.02) < 0.1 < found.unsteered_kl
    both = [{one.name: one for one in GGUFReader(file).tensors} for file in (source, output)]
    kinds = [{name: one.tensor_type.name for name, one in tensors.items()} for tensors in both]
    written = {name for name, kind in kinds[1].items() if kinds[0].get(name) != kind}
    assert written == {
        *("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"),
        *("blk.0.ffn_down.bias", "blk.2.ffn_down.bias", "blk.2.attn_output.bias"),
    }
    assert baked.tokenizer.encode("the text") == loaded.tokenizer.encode("the text")
    for wrong in (
        replace(request, lora=True),
        replace(request, source=str(tmp_path)),
        replace(request, source=str(output)),
    ):
        with pytest.raises(UnsupportedParameter, match="from another GGUF file"):
            await bake_model(wrong, Vectors(vectors), lambda _step: None)


async def test_a_folder_is_written_and_compared_with_the_engine(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source, output = tmp_path / "model", tmp_path / "baked"
    FAMILIES["llama"]().save_pretrained(source)
    hf_byte_tokenizer.save_pretrained(source)
    info = load(str(source), cache_dir=tmp_path, device="cpu", dtype="float32").info
    vectors, steps = Vectors(vectors_for(info)), list[str]()
    for items, lora in ((EDITS + CONSTANTS, False), (EDITS, True)):
        spec = SteeringSpec.model_validate({"interventions": items})
        request = BakeRequest(str(source), spec, output, tmp_path, dtype="float32", lora=lora)
        found = await bake_model(request, vectors, steps.append)
        assert found.kl < 1e-6
        assert found.unsteered_kl > 0.1
    baked = load(str(output), cache_dir=tmp_path, device="cpu", dtype="float32")
    assert baked.model.config.mlp_bias
    assert baked.tokenizer.encode("text") == tuple(hf_byte_tokenizer.encode("text"))
    settings = json.loads((output / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["r"] == 1 + 2 * D_MODEL // 4, "a head of eight twice, and a direction"
