"""Plans the memory of a model before its weights are read: from the configuration and the headers of its safetensors files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from steering.errors import ModelLoadFailed, OutOfMemory
from steering.model.quantization import BITS, Quantization, method_of

STORED_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip
"""Bytes of a number by its dtype in a safetensors header; all others have one."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
GIGABYTE = 10**9


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server keeps beside the weights. cache_bytes: for keys and values; None: a share of what is free after
    loading, which must hold `positions`."""

    cache_bytes: int | None = None
    positions: int = 2048


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model will take, in bytes. cache: keys and values. remedies: what reduces it."""

    weights: int
    cache: int
    remedies: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Both parts together."""
        return self.weights + self.cache

    def __str__(self) -> str:
        named = {"of weights": self.weights, "of keys and values": self.cache}
        parts = [f"{shown(size)} {what}" for what, size in named.items() if size]
        return parts[0] if len(parts) == 1 else f"{shown(self.total)} ({', '.join(parts)})"


def plan_memory(
    config: Any,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    serving: Serving,
    quantization: Quantization | None = None,
) -> MemoryPlan:
    """Plans a model in a folder. quantization: see BITS. Raises ModelLoadFailed where a file of weights is missing."""
    text = config.get_text_config()
    weights = sum(
        _held_bytes(config, dtype, device.type == "cpu", quantization, tensor)
        for tensor in _stored(folder)
        if not (text.tie_word_embeddings and tensor[0].endswith("lm_head.weight"))
    )
    context = _number(text, "max_position_embeddings")
    positions = serving.positions if context is None else min(serving.positions, context)
    cache = positions * position_bytes(config, dtype) if serving.cache_bytes is None else serving.cache_bytes
    remedies = {
        "STEERING_DTYPE=bfloat16": dtype == torch.float32,
        "STEERING_QUANTIZATION": method_of(config) is None and quantization is None,
        "a lower STEERING_CACHE_MEGABYTES": serving.cache_bytes is not None,
        "a smaller model": True,
    }
    return MemoryPlan(weights, cache, tuple(name for name, helps in remedies.items() if helps))


def check_memory(name: str, plan: MemoryPlan, free: Mapping[str, int], *, more_devices: bool = False) -> None:
    """Raises OutOfMemory where a plan does not fit. free: bytes by device. more_devices: a device map would find some."""
    if plan.total > sum(free.values()):
        there = " and ".join(f"{device} has {shown(size)}" for device, size in free.items())
        remedies = (*plan.remedies, *(("STEERING_DEVICE_MAP=auto",) if more_devices else ()))
        raise OutOfMemory(f"{name} needs {plan}, and {there} free; what helps: {', '.join(remedies)}")


def position_bytes(config: Any, dtype: torch.dtype) -> int:
    """Returns the bytes of the keys and values of one position, over all layers, by the configuration alone."""
    text = config.get_text_config()
    heads = _number(text, "num_attention_heads") or 1
    if rank := _number(text, "kv_lora_rank"):  # the latent vector and the part with positions are kept
        numbers = rank + (_number(text, "qk_rope_head_dim") or 0)
    else:
        shared = (
            1 if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False) else None
        )
        head = _number(text, "head_dim") or text.hidden_size // heads
        numbers = 2 * (shared or _number(text, "num_key_value_heads") or heads) * head
    return int(text.num_hidden_layers * numbers * dtype.itemsize)


def _number(config: Any, name: str) -> int | None:
    """Returns a number of a configuration, the largest where layers differ; None where there is none."""
    try:
        value = getattr(config, name, None)
    except Exception:  # some configurations do not answer for what differs between their layers
        return None
    return max(value, default=None) if isinstance(value, list | tuple) else value


def _stored(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yields name, dtype and shape of every tensor that transformers would load."""
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a mapping
                part = file.get_slice(name)
                yield name, part.get_dtype(), part.get_shape()


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a model, as transformers chooses them. Raises ModelLoadFailed where one is missing."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelLoadFailed(
            f"{folder.name} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; only safetensors are read"
        )
    named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise ModelLoadFailed(
            f"{folder.name} is not complete: {len(missing)} of {len(named)} files of weights are missing, {missing[0]} first"
        )
    return [folder / name for name in named]


def _held_bytes(
    config: Any, dtype: torch.dtype, on_cpu: bool, quantization: Quantization | None, tensor: tuple[str, str, list[int]]
) -> int:
    """Returns the bytes of a stored tensor once it is loaded. on_cpu: without a GPU, transformers dequantizes some kinds."""
    name, kind, shape = tensor
    count, stored, method = torch.Size(shape).numel(), STORED_BYTES.get(kind, 1), method_of(config)
    if kind in FLOATS:
        if method is not None:
            return count * min(stored, dtype.itemsize)
        if quantization is not None and len(shape) > 1 and config.get_text_config().vocab_size not in shape:
            return count * BITS[quantization] // 8
        # float16 is cast after loading, see `cast_parameters`
        return count * (max(stored, 2) if dtype == torch.float16 else dtype.itemsize)
    if on_cpu and kind.startswith("F8"):
        return count * dtype.itemsize
    if on_cpu and method == "mxfp4" and name.endswith("_blocks"):  # two numbers in a byte
        return 2 * count * dtype.itemsize
    return count * stored


def shown(size: int) -> str:
    """Writes bytes as people read them."""
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE // 10 else f"{size / 10**6:.1f} MB"
