"""Blocks: weights of linear layers as a GGUF file stores them, kept beside the converted model, for kernels that widen them.

A block is 32 or 256 consecutive inputs of one output: whole numbers of 4 to 8 bits, and their scales. The formats are those of
ggml-quants.c of llama.cpp.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from steering.shapes import Float, Shaped, Tensor

Weights: TypeAlias = Literal["auto", "dtype", "int8", "gguf"]
"""How linear layers keep their weights: in the compute dtype, as 8-bit blocks that are made of them, as the blocks of a GGUF file, or
(auto) as these and in the compute dtype."""
INPUTS: Mapping[str, int] = {
    "Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q8_0": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256,
}  # fmt: skip
"""Inputs of a block, by its format."""
BYTES: Mapping[str, int] = {
    "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210,
}  # fmt: skip
"""Bytes of a block in the file."""
INT8 = "Q8_0"
MOST_GROWTH = 1.1
"""Of blocks when they are packed: those of Q6_K grow most, by 2 %, and the last panel is filled with zeros."""


class Blocks(NamedTuple):
    """The weight of a linear layer. rows: the blocks of each output, as the file has them."""

    format: str
    rows: Shaped[Tensor, "output byte"]


def blocks_path(folder: Path) -> Path:
    """Returns where the blocks of a converted model are; the file exists if it has some."""
    return folder / "blocks" / "model.safetensors"


def write_blocks(reader: Any, model: nn.Module, folder: Path) -> None:
    """Writes the blocks of linear layers of a model that was dequantized to bfloat16. reader: of the GGUF file. Rows
    are found by their values, whatever names and orders an architecture has; layers with missing rows or several
    formats have no blocks."""
    from gguf.quants import dequantize  # noqa: PLC0415 - in the child that reads GGUF only

    tensors = [tensor for tensor in reader.tensors if tensor.tensor_type.name in INPUTS and len(tensor.shape) == 2]
    places: dict[bytes, tuple[int, int]] = {}
    for number, tensor in enumerate(tensors):
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16)
        places.update((digest, (number, row)) for row, digest in enumerate(_digests(values)))
    written, formats = {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        found = [places.get(digest) for digest in _digests(module.weight.detach())]
        known = [place for place in found if place is not None]
        kinds = {tensors[number].tensor_type.name for number, _ in known}
        if len(known) < len(found) or len(kinds) != 1:
            continue
        (formats[name],) = kinds
        written[name] = torch.stack([torch.from_numpy(tensors[number].data[row].copy()) for number, row in known])
    if written:
        path = blocks_path(folder)
        path.parent.mkdir()
        save_file(written, path, metadata={"formats": json.dumps(formats)})
        path.chmod(0o644)
        path.parent.chmod(0o755)


def _digests(rows: Float[Tensor, "row input"]) -> Iterable[bytes]:
    values = rows.contiguous().view(torch.int16).numpy()
    return (blake2b(row.tobytes(), digest_size=16).digest() for row in values)


def read_blocks(folder: Path) -> dict[str, Blocks]:
    """Returns the blocks of a converted model by the name of their linear layer, mapped from the file; {} where it has none."""
    path = blocks_path(folder)
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        formats = json.loads(file.metadata()["formats"])
        return {name: Blocks(formats[name], file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping


def packed_bytes(folder: Path, weights: Weights, dense: int) -> int:
    """Returns the most memory of a model whose linear layers our kernels pack. dense: of all its weights in bfloat16,
    of which those that are read from blocks are mapped from the file."""
    if weights == "int8":
        return dense + dense * BYTES[INT8] // (2 * INPUTS[INT8])
    blocks = read_blocks(folder) if weights != "dtype" else {}
    if not blocks:
        return 2 * dense
    stored = sum(rows.numel() for _, rows in blocks.values())
    replaced = sum(rows.numel() // BYTES[form] * INPUTS[form] * 2 for form, rows in blocks.values())
    return max(dense - replaced, 0) + int(stored * MOST_GROWTH)


def int8_blocks(weight: Float[Tensor, "output input"]) -> Blocks:
    """Rounds a weight to 8-bit blocks: 32 inputs with one scale, their largest magnitude over 127. The inputs are a multiple of 32."""
    values = torch.unflatten(weight.to(torch.float32), 1, (-1, INPUTS[INT8]))
    scale = (values.abs().amax(-1, keepdim=True) / 127).to(torch.float16)
    divisor = scale.to(torch.float32)
    numbers = torch.where(divisor > 0, values / divisor, 0.0).round().clamp(-127, 127).to(torch.int8)
    return Blocks(INT8, torch.cat([scale.view(torch.uint8), numbers.view(torch.uint8)], -1).flatten(1))
