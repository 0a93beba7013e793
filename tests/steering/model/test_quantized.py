"""Quantized models: steering equals a hook on the same quantized model, in the dtype of its activations."""

import asyncio
import json
import shutil
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.options import EngineLimits, EngineOptions
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.factory import open_engine, self_tested
from steering.errors import InvalidRequest, ModelLoadFailed
from steering.model.fingerprint import fingerprint_of
from steering.model.hook_points import BlockOutput, residual_of, with_residual
from steering.model.loading import LoadedModel, load
from steering.model.memory_plan import Serving, plan_memory
from steering.model.quantization import Quantization, check_quantization
from tests.engines import Outcome, run, sampling
from tests.families import build
from tests.plans import plan_for, vectors_for

with warnings.catch_warnings():  # its import uses what torch deprecates
    warnings.simplefilter("ignore")
    import bitsandbytes  # noqa: F401

METHODS: dict[Quantization, float] = {"bitsandbytes-8bit": 0.1, "bitsandbytes-4bit": 5e-3, "torchao-int8": 5e-3}
"""How close log probabilities are, in nats. LLM.int8 computes columns with outliers apart, and which those are depends on the tokens of
a pass."""
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
FP8_MOST, BLOCK = 448.0, 64
PROMPT, TOKENS, LAYER = tuple(b"Once upon a time there was"), 6, 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with plain weights."""
    folder = tmp_path_factory.mktemp("plain") / "tiny"
    build("LlamaForCausalLM", **WIDE, num_key_value_heads=2, max_position_embeddings=256).save_pretrained(folder)
    hf_byte_tokenizer.save_pretrained(folder)
    return folder


def quantized(plain: Path, method: Quantization, dtype: str = "float32") -> LoadedModel:
    if find_spec(method.partition("-")[0]) is None:
        pytest.skip(f"{method} needs its package")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return load(str(plain), cache_dir=plain.parent, device="cpu", dtype=dtype, quantization=method)


async def answers(loaded: LoadedModel) -> tuple[Outcome, Outcome, torch.Tensor]:
    """Returns an answer without steering, one with an addition, and what is added."""
    engine = TransformersEngine(loaded, EngineLimits(cache_bytes=1 << 20))
    try:
        vectors = vectors_for(engine.info)
        item = {"vector": "alpha", "layers": [LAYER], "strength": 2.0, "scope": {"tokens": "all"}}
        plan = await plan_for([item], vectors, engine.info)
        params = sampling(TOKENS, logprobs=0)
        outcomes = [await run(engine, GenerationRequest(PROMPT, params, *one)) for one in ((), (plan,))]
    finally:
        await engine.close()
    direction = vectors["alpha"].layers[LAYER]
    return outcomes[0], outcomes[1], 2.0 * direction.scale * direction.direction


def difference(model: Any, outcome: Outcome) -> float:
    """Returns the largest difference of a log probability from one forward pass of the model."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*PROMPT, *outcome.tokens]]), use_cache=False).logits[
            0, -TOKENS - 1 : -1
        ]
    own = logits.float().log_softmax(-1).gather(1, torch.tensor(outcome.tokens)[:, None])[:, 0]
    ours = torch.tensor([event.logprob for event in outcome.events if event.finish is None])
    return float((own - ours).abs().max())


def hooked(loaded: LoadedModel, change: torch.Tensor, seen: list[torch.dtype]) -> Any:
    def add(_module: object, _arguments: object, output: BlockOutput) -> BlockOutput:
        residual = residual_of(output)
        seen.append(residual.dtype)
        return with_residual(output, (residual.float() + change).to(residual.dtype))

    return loaded.layout.blocks[LAYER].register_forward_hook(add)


@pytest.mark.parametrize("method", METHODS)
def test_steering_a_quantized_model_equals_a_hook_on_it(method: Quantization, plain: Path) -> None:
    loaded, close = self_tested(quantized(plain, method)), METHODS[method]
    unsteered, steered, change = asyncio.run(answers(loaded))
    assert difference(loaded.model, unsteered) < close
    assert difference(loaded.model, steered) > 5 * close  # the addition changes the answer
    seen: list[torch.dtype] = []
    handle = hooked(loaded, change, seen)
    try:
        assert difference(loaded.model, steered) < close
    finally:
        handle.remove()
    assert set(seen) == {torch.float32}


def test_the_residual_has_the_dtype_of_the_activations(plain: Path) -> None:
    loaded = quantized(plain, "bitsandbytes-4bit", "bfloat16")
    seen: list[torch.dtype] = []
    handle = hooked(loaded, torch.zeros(64), seen)
    loaded.model(input_ids=torch.tensor([PROMPT]))
    handle.remove()
    assert (loaded.info.dtype, seen) == ("bfloat16", [torch.bfloat16])


def test_weights_that_are_quantized_in_the_files_are_loaded_as_they_are(
    plain: Path, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    packed = quantized(plain, "bitsandbytes-4bit")
    packed.model.save_pretrained(tmp_path / "packed")
    hf_byte_tokenizer.save_pretrained(tmp_path / "packed")
    again = load(str(tmp_path / "packed"), cache_dir=tmp_path, device="cpu", dtype="float32")
    ids = torch.tensor([PROMPT])
    assert torch.equal(again.model(ids).logits, packed.model(ids).logits)
    assert again.info.fingerprint == packed.info.fingerprint
    assert again.info.parameter_count == load(str(plain), cache_dir=tmp_path, device="cpu").info.parameter_count
    with pytest.raises(InvalidRequest, match=r"quantized in the files \(bitsandbytes\)") as refusal:
        load(str(tmp_path / "packed"), cache_dir=tmp_path, device="cpu", quantization="bitsandbytes-8bit")
    assert refusal.value.param == "quantization"


def rewrite_config(folder: Path, **quantization: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def test_fp8_is_plain_where_no_gpu_computes_with_it_and_is_planned_so(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fp8"
    shutil.copytree(plain, folder)
    stored: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    rounded: dict[str, torch.Tensor] = {}
    for name, weight in list(stored.items()):
        if name.endswith("proj.weight"):
            scale = weight.abs().max() / FP8_MOST
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.expand([-(-size // BLOCK) for size in weight.shape]).contiguous()
            rounded[name] = stored[name].float() * scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite_config(folder, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[BLOCK, BLOCK])
    loaded = load(str(folder), cache_dir=tmp_path, device="cpu", dtype="float32")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    weights = dict(loaded.model.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in rounded.items())
    plan = plan_memory(AutoConfig.from_pretrained(folder), folder, torch.float32, torch.device("cpu"), Serving(0, 0))
    scales = 4 * sum(value.numel() for name, value in stored.items() if name.endswith("scale_inv"))
    assert plan.weights == 4 * loaded.model.num_parameters() + scales


FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def test_mxfp4_is_plain_where_no_gpu_computes_with_it_and_steers_as_its_hook(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Two numbers of four bits in a byte, and a power of two for each block of 32."""
    size = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = build("GptOssForCausalLM", **size, **experts, max_position_embeddings=256)
    folder = tmp_path / "mxfp4"
    model.save_pretrained(folder)
    hf_byte_tokenizer.save_pretrained(folder)
    stored: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    random, rounded = torch.Generator().manual_seed(1), dict[str, torch.Tensor]()
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inner, outer = stored.pop(name).shape
        blocks = torch.randint(256, (count, outer, inner // 32, 16), dtype=torch.uint8, generator=random)
        scales = torch.randint(118, 123, (count, outer, inner // 32), dtype=torch.uint8, generator=random)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], dim=-1).flatten(-2)
        values = values * torch.exp2(scales.float() - 127)[..., None]
        rounded[name] = values.flatten(-2).transpose(1, 2)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite_config(folder, quant_method="mxfp4")
    loaded = load(str(folder), cache_dir=tmp_path, device="cpu", dtype="float32")
    weights = dict(loaded.model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], weight) for name, weight in rounded.items())
    unsteered, steered, change = asyncio.run(answers(loaded))
    assert difference(loaded.model, unsteered) < 1e-3 < difference(loaded.model, steered)
    handle = hooked(loaded, change, [])
    assert difference(loaded.model, steered) < 1e-3
    handle.remove()


@pytest.mark.parametrize(("method", "package"), [("gptq", "optimum"), ("awq", "gptqmodel")])
def test_weights_whose_package_is_missing_are_refused_with_its_name(
    method: str, package: str, plain: Path, tmp_path: Path
) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    shutil.copytree(plain, tmp_path / method)
    rewrite_config(tmp_path / method, quant_method=method, bits=4, group_size=128)
    with pytest.raises(ModelLoadFailed, match=rf"{method} could not be loaded: Loading .* requires {package}"):
        load(str(tmp_path / method), cache_dir=tmp_path, device="cpu")


def test_the_engine_quantizes_as_the_operator_says_and_runs_eagerly(plain: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        options = EngineOptions(str(plain), tmp_path, device="cpu", quantization="bitsandbytes-8bit")
        engine = open_engine(options)
    try:
        assert engine.stats().executor == "eager"
        assert len(engine.info.typical_norms) == 2
    finally:
        asyncio.run(engine.close())


def test_a_method_whose_package_is_missing_is_refused_by_name(plain: Path) -> None:
    with pytest.raises(InvalidRequest, match="needs the package torchao, which is not installed"):
        check_quantization(AutoConfig.from_pretrained(plain), "torchao-int8", lambda _name: None)


def test_a_weight_that_is_held_in_several_tensors_is_in_the_fingerprint_with_all_of_them(
    tiny_model: PreTrainedModel,
) -> None:
    def packed(seeds: Sequence[int]) -> str:
        parts = [torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        both: torch.Tensor = TwoTensor(*parts)  # type: ignore[no-untyped-call]
        tiny_model.register_parameter("packed", torch.nn.Parameter(both, requires_grad=False))
        return fingerprint_of(tiny_model)

    assert len({packed((0, 1)), packed((0, 2)), packed((2, 1)), packed((0, 1))}) == 3
