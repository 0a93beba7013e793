"""Bakes steering into weights, so that any server runs it: into the last linear layers of attention and MLP, or into a LoRA beside them.

The output of such a layer is o = W z + b, and a linear edit at its hook point o' = o + U^T diag(w) (V o + c). So W' = W + B A with
B = U^T diag(w), A = V W, which is the LoRA, and b' = b + B (V b + c). The ablation of a head scales columns of W. A constant added to the
residual after a block is one added to the output of its MLP, where the block only adds that output to the residual.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steering.concepts.loader import load_neutral
from steering.engine import open_engine
from steering.engine.api import CapturePrompt, CaptureSpec
from steering.engine.options import EngineOptions
from steering.errors import UnsupportedParameter
from steering.model.conversion import gguf_names, give_biases
from steering.model.embedded import EMBEDDED_MODEL, embedded_gguf
from steering.model.hook_points import HEADS, HOOKS, BlockOutput, kind_of, layer_of, point_of, residual_of
from steering.model.layout import Layout
from steering.model.loading import load
from steering.plan.resolve import resolve
from steering.plan.types import HEAD, RELU, ROTATE, DoseGuard, Edits, SteeringPlan
from steering.shapes import Float, Logits, Tensor
from steering.spec import Schedule, SteeringSpec, TokenScope
from steering.threads import run_in_thread
from steering.vectors import VectorSource
from steering.workflows.measures import divergences

PROBE = [[0, 1, 2]]
"""Token ids of the pass that finds the last linear layers."""
TEXTS, TEXT_TOKENS = 8, 48
"""Neutral texts, and tokens of each, on which baked weights are compared: their logits are held three times."""


@dataclass(slots=True, eq=False)
class BakedLayer:
    """One linear layer with its steering. name: in the model; factors: (B, A) of each change of the weight, in order."""

    name: str
    module: nn.Module
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, "out"] | None
    constant: bool = False
    factors: list[tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]] = field(default_factory=list)

    def change(self, write: Float[Tensor, "out rank"], read: Float[Tensor, "rank in"]) -> None:
        """Adds a product to the weight."""
        self.factors.append((write, read))
        self.weight = self.weight + write @ read

    def add(self, constant: Float[Tensor, "out"]) -> None:
        """Adds a constant to the output."""
        if bool(constant.any()):
            self.bias = constant if self.bias is None else self.bias + constant
            self.constant = True


def bake(model: PreTrainedModel, layout: Layout, plan: SteeringPlan) -> list[BakedLayer]:
    """Returns the linear layers that carry a plan, in float32. Raises UnsupportedParameter naming the intervention."""
    _check_plan(plan)
    names = {module: name for name, module in model.named_modules()}
    layers: dict[int, BakedLayer] = {}

    def layer_at(point: int, kind: int) -> BakedLayer:
        hook = point_of(layer_of(point), kind)
        if hook not in layers:
            module = _last_linear(model, layout, hook)
            weight = module.weight.detach().float()
            bias = None if module.bias is None else module.bias.detach().float()
            layers[hook] = BakedLayer(names[module], module, weight.T if isinstance(module, Conv1D) else weight, bias)
        return layers[hook]

    for point, edits in plan.layers.items():
        kind = kind_of(point)
        if kind == HEADS:
            _without_heads(layer_at(point, HOOKS.index("attention")), edits, layout.head_count)
        elif kind:
            _affine(layer_at(point, kind), edits)
        else:
            reads = [one for one in edits if bool(one.read.any())]
            if reads or not _adds_to_residual(model, layout, layer_of(point)):
                _refuse(plan, reads[0] if reads else edits[0], _RESIDUAL if reads else _NORMED)
            _affine(layer_at(point, HOOKS.index("mlp")), edits)
    return list(layers.values())


_RESIDUAL = (
    "what it adds to the residual depends on the residual, which no weights of the block can do; at the hook points 'attention' and 'mlp' "
    "the same edit can be baked"
)
_NORMED = "the block does not add the output of its MLP to the residual as it is; at the hook point 'mlp' the same edit can be baked"


def _check_plan(plan: SteeringPlan) -> None:
    if plan.empty:
        raise UnsupportedParameter("the steering changes nothing, so there is nothing to bake", param="steering")
    if plan.dose_bound is not None:
        raise UnsupportedParameter(
            "a dose guard that bounds every token cannot be baked: resolve without it", param="steering"
        )
    for edits in plan.layers.values():
        for one in edits:
            owner = plan.interventions[one.owner]
            spec = owner.spec
            numbers = zip(one.kinds, one.read, one.numbers.tolist(), strict=True)
            reasons = {
                "a condition": owner.condition is not None,
                "hold": bool(owner.holds),
                "a scope": spec.scope != TokenScope(),
                "a schedule": spec.schedule != Schedule(),
                "rotate": ROTATE in one.kinds,
                "a change in shares of |r|": bool(one.numbers[:, 1].any()),
                "ReLU of the residual": any(kind == RELU and bool(read.any()) for kind, read, _ in numbers),
            }
            if found := [reason for reason, holds in reasons.items() if holds]:
                _refuse(plan, one, f"{', '.join(found)} cannot be baked into weights")


def _refuse(plan: SteeringPlan, edits: Edits, reason: str) -> None:
    spec = plan.interventions[edits.owner].spec
    what = spec.vector or f"head {spec.head}"
    raise UnsupportedParameter(f"{spec.operation} {what} at hook point {spec.hook!r}: {reason}", param="steering")


def _affine(layer: BakedLayer, edits: Sequence[Edits]) -> None:
    """Adds edits of one point, which all read what arrives there."""
    write, read = (torch.cat([getattr(one, name) for one in edits]) for name in ("write", "read"))
    kinds, numbers = [kind for one in edits for kind in one.kinds], torch.cat([one.numbers for one in edits])
    relu = torch.tensor([kind == RELU for kind in kinds])  # these read nothing
    constants = torch.where(relu, numbers[:, 0].clamp_min(0.0), numbers[:, 0])
    weighted = write.T * numbers[:, 2]
    if layer.bias is not None:
        constants = constants + read @ layer.bias
    reads = read.any(1)
    if bool(reads.any()):
        layer.change(weighted[:, reads], read[reads] @ layer.weight)
    layer.add(weighted @ constants)


def _without_heads(layer: BakedLayer, edits: Sequence[Edits], count: int) -> None:
    """Takes shares of heads out of the columns that read them; several of one head add up, as all read what arrives there."""
    original, width = layer.weight, layer.weight.shape[1] // count
    for one in edits:
        assert set(one.kinds) == {HEAD}
        for head, (_, _, share) in zip(one.write.argmax(1).tolist(), one.numbers.tolist(), strict=True):
            columns = slice(head * width, (head + 1) * width)
            read = torch.zeros(width, original.shape[1])
            read[:, columns] = torch.eye(width)
            layer.change(-share * original[:, columns], read)


def _last_linear(model: PreTrainedModel, layout: Layout, point: int) -> Any:
    """Returns the linear layer whose output is that of the module of a hook point. Raises UnsupportedParameter where there is none."""
    module = layout.inner.get(point)
    found: list[nn.Module] = []
    if module is not None:
        linears = [one for one in module.modules() if isinstance(one, nn.Linear | Conv1D)]
        output, *inside = _outputs(model, [module, *linears])
        found = [
            linear
            for linear, own in zip(linears, inside, strict=True)
            if own is not None
            and output is not None
            and own.numel() == output.numel()
            and torch.equal(own.flatten(), output.flatten())
        ]
    if len(found) != 1:
        raise UnsupportedParameter(
            f"the {HOOKS[kind_of(point)]} module of layer {layer_of(point)} of {layout.architecture} does not end in one linear layer "
            "into which an edit could be baked",
            param="steering",
        )
    return found[0]


def _outputs(model: PreTrainedModel, modules: Sequence[nn.Module]) -> list[Tensor | None]:
    """Returns what modules return in a short pass; None for those that do not run."""
    seen: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _arguments: object, output: BlockOutput) -> None:
        seen[module] = residual_of(output).clone()

    handles = [module.register_forward_hook(note) for module in dict.fromkeys(modules)]
    try:
        with torch.no_grad():
            model(torch.tensor(PROBE, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [seen.get(module) for module in modules]


def _adds_to_residual(model: PreTrainedModel, layout: Layout, layer: int) -> bool:
    """Whether a change of the MLP's output changes the residual after the block by the same."""
    module = layout.inner.get(point_of(layer, HOOKS.index("mlp")))
    if module is None:
        return False
    block = layout.blocks[layer]
    (before,) = _outputs(model, [block])
    size = 1.0 if before is None else float(before.float().abs().mean())

    def shift(_module: nn.Module, _arguments: object, output: BlockOutput) -> BlockOutput:
        moved = residual_of(output) + size
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = module.register_forward_hook(shift)
    try:
        (after,) = _outputs(model, [block])
    finally:
        handle.remove()
    if before is None or after is None:
        return False
    difference = (after - before).float()
    rounding = 4 * torch.finfo(before.dtype).eps * float(before.float().abs().max())
    return torch.allclose(difference, torch.full_like(difference, size), atol=rounding)


def put(model: PreTrainedModel, layers: Sequence[BakedLayer]) -> None:
    """Writes baked layers, with the biases that they need, into a model. Raises UnsupportedParameter without biases."""
    missing = [layer.name for layer in layers if layer.constant and layer.module.bias is None]
    if missing and not give_biases(model, missing):
        raise UnsupportedParameter(
            f"{type(model).__name__} has no bias at {missing[0]}, so a constant cannot be added there: edits without one, such as ablate "
            "at the hook points 'attention' and 'mlp', can be baked",
            param="steering",
        )
    with torch.no_grad():
        for layer in layers:
            weight = layer.weight.T if isinstance(layer.module, Conv1D) else layer.weight
            layer.module.weight.copy_(weight)  # type: ignore[operator]
            if layer.bias is not None:
                layer.module.bias.copy_(layer.bias)  # type: ignore[operator]


def write_lora(layers: Sequence[BakedLayer], folder: Path, base: str) -> None:
    """Writes a LoRA in the format of PEFT. base: the model that it is of. Raises UnsupportedParameter for a constant."""
    if constants := [layer.name for layer in layers if layer.constant]:
        raise UnsupportedParameter(
            f"a LoRA has no bias, and a constant is to be added at {constants[0]}: bake it into weights", param="lora"
        )
    rank = max(sum(write.shape[1] for write, _ in layer.factors) for layer in layers)
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        write = torch.cat([one for one, _ in layer.factors], dim=1)
        read = torch.cat([one for _, one in layer.factors])
        spare = rank - write.shape[1]
        place = f"base_model.model.{layer.name}"
        tensors[f"{place}.lora_A.weight"] = nn.functional.pad(read, (0, 0, 0, spare)).contiguous()
        tensors[f"{place}.lora_B.weight"] = nn.functional.pad(write, (0, spare)).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "fan_in_fan_out": isinstance(layers[0].module, Conv1D),
        "target_modules": [layer.name for layer in layers],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def write_gguf(model: PreTrainedModel, layers: Sequence[BakedLayer], source: Path, output: Path) -> None:
    """Writes a copy of the GGUF file of a model, in which what was baked is in float32 and all else as it was."""
    reader = GGUFReader(source)
    names, changed = gguf_names(reader, model), dict[str, np.ndarray]()
    for layer in layers:
        if layer.factors:
            changed[f"{names[layer.name]}.weight"] = layer.weight.contiguous().numpy()
        if layer.constant and layer.bias is not None:
            changed[f"{names[layer.name]}.bias"] = layer.bias.numpy()
    writer = GGUFWriter(output, reader.fields[Keys.General.ARCHITECTURE].contents())
    writer.data_alignment = reader.alignment
    for name, value in reader.fields.items():
        if name != Keys.General.ARCHITECTURE and not name.startswith("GGUF."):  # which the writer writes
            nested = value.types[-1] if value.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value.contents(), value.types[0], sub_type=nested)
    for tensor in reader.tensors:
        if tensor.name in changed:
            writer.add_tensor(tensor.name, changed.pop(tensor.name))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in changed.items():
        writer.add_tensor(name, values)
    output.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass(frozen=True, slots=True)
class BakeReport:
    """How baked weights differ from the served steering, over tokens of neutral texts.
    kl, largest_kl: mean and largest KL(served || baked) of a token, in nats; unsteered_kl: mean KL(served ||
    unsteered)."""

    layers: tuple[str, ...]
    tokens: int
    kl: float
    largest_kl: float
    unsteered_kl: float
    largest_logit: float


@dataclass(frozen=True, slots=True)
class BakeRequest:
    """What to bake. source, revision, dtype, cache_dir: see `load`. output: a folder or .gguf file. lora: an adapter."""

    source: str | None
    steering: SteeringSpec
    output: Path
    cache_dir: Path
    revision: str | None = None
    dtype: str = "auto"
    lora: bool = False

    def source_file(self) -> Path | None:
        """Returns the GGUF file of which another is written; None where a folder is. Raises UnsupportedParameter."""
        if self.output.suffix != ".gguf":
            return None
        source = self.source or EMBEDDED_MODEL
        file = embedded_gguf() if source.lower() == EMBEDDED_MODEL else Path(source).expanduser()
        if self.lora or file.suffix != ".gguf" or file.resolve() == self.output.resolve():
            raise UnsupportedParameter(
                f"{self.output.name} is written from another GGUF file, without a LoRA: got {source}{' and a LoRA' * self.lora}; a "
                "folder becomes one by convert_hf_to_gguf.py of llama.cpp",
                param="output",
            )
        return file


async def bake_model(request: BakeRequest, vectors: VectorSource, step: Callable[[str], None]) -> BakeReport:
    """Writes a model with its steering as a folder, GGUF file or LoRA, and compares it with the served steering.
    Raises UnsupportedParameter for what cannot be baked, and what `load` and `resolve` raise. step: receives each step."""
    request.source_file()
    source = request.source or EMBEDDED_MODEL
    files: dict[str, Any] = {"cache_dir": request.cache_dir, "revision": request.revision}
    files |= {"device": "cpu", "dtype": request.dtype, "report": step}
    options = EngineOptions(source, compiled=False, kernels=False, weights="dtype", **files)
    engine = await run_in_thread(open_engine, "transformers", options)
    try:
        plan = await resolve(request.steering, vectors, engine.info, guard=DoseGuard(action="off"))
        texts = [engine.tokenizer.encode(text)[:TEXT_TOKENS] for text in load_neutral()[:TEXTS]]
        captures = await engine.capture([CapturePrompt(ids, plan) for ids in texts], CaptureSpec((), logits=True))
    finally:
        await engine.close()
    served = [one.logits for one in captures if one.logits is not None]

    def write() -> BakeReport:
        loaded = load(request.source, **files)
        model, folder = loaded.model, loaded.folder
        unsteered = list(plain_logits(model, texts))
        layers = bake(model, loaded.layout, plan)
        if request.lora:
            write_lora(layers, request.output, loaded.info.name)
        put(model, layers)
        found = report(layers, served, unsteered, list(plain_logits(model, texts)))
        if not request.lora:
            step(f"Writing {request.output}")
        if (file := request.source_file()) is not None:
            write_gguf(model, layers, file, request.output)
        elif not request.lora:
            model.config.pad_token_id = AutoConfig.from_pretrained(folder).pad_token_id  # the engine goes without
            model.save_pretrained(request.output)
            AutoTokenizer.from_pretrained(folder).save_pretrained(request.output)
        return found

    return await run_in_thread(write)


def plain_logits(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Iterator[Logits]:
    """Yields float32 logits (token, vocab) of texts in one pass of transformers each."""
    for ids in texts:
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        yield logits.float().cpu()


def report(
    layers: Sequence[BakedLayer], served: Sequence[Logits], unsteered: Sequence[Logits], baked: Sequence[Logits]
) -> BakeReport:
    """Compares logits of the same texts: under served steering, without steering, and of the baked weights."""
    of_baked, of_unsteered = (
        [kl for one, other in zip(served, logits, strict=True) for kl in divergences(one, other)]
        for logits in (baked, unsteered)
    )
    largest = max(float((one - other).abs().max()) for one, other in zip(served, baked, strict=True))
    return BakeReport(
        tuple(layer.name for layer in layers),
        len(of_baked),
        fmean(of_baked),
        max(of_baked),
        fmean(of_unsteered),
        largest,
    )
