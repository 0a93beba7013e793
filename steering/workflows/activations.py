"""Reads the activations of texts at given layers, and writes it as one safetensors file, piece by piece."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, TypeAlias

import numpy as np
import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Position, Prompt
from steering.errors import InvalidRequest
from steering.model.hook_points import points_of
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.shapes import Float, Tensor
from steering.spec import Hook

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
_DTYPES: Mapping[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "F32"),
    "float16": (torch.float16, "F16"),
    "bfloat16": (torch.bfloat16, "BF16"),
}
PIECE_BYTES = 1 << 20
ALIGNMENT = 8
"""The header is padded with spaces to a multiple of this, as the safetensors library does."""


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """One capture per text. Their tensors are not joined, so that no second copy of all numbers is made."""

    layers: tuple[int, ...]
    every_token: bool
    captures: tuple[Capture, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Rows of text i are offsets[i] to offsets[i + 1]."""
        return (0, *accumulate(capture.activations.shape[1] for capture in self.captures))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of all tokens of all texts."""
        return tuple(token for capture in self.captures for token in capture.token_ids)

    def rows(self, layer: int) -> Iterator[Float[Tensor, "row d_model"]]:
        """Yields the rows of one layer, text by text."""
        index = self.layers.index(layer)
        for capture in self.captures:
            yield capture.activations[index]


async def activations(
    engine: Engine,
    prompts: Sequence[Prompt],
    layers: tuple[int, ...],
    position: Position = "last",
    plan: SteeringPlan = UNSTEERED,
    hook: Hook = "residual",
    head: int | None = None,
) -> Activations:
    """Reads texts, conversations or token ids once, all as prompt: a plan for generated positions acts at the last
    position. hook, head: see `points_of`, whose errors it raises, and those of `Engine.capture`."""
    spec = CaptureSpec(layers=points_of(layers, engine.info, hook, head), position=position)
    captures = await engine.capture([CapturePrompt(prompt, plan) for prompt in prompts], spec, priority=0)
    if head is not None:
        # copied, so that the other heads are not kept
        captures = tuple(
            replace(one, activations=one.activations.chunk(engine.info.head_count, dim=-1)[head].clone())
            for one in captures
        )
    return Activations(layers, position == "all", captures)


def check_range(found: Activations, dtype: Dtype) -> None:
    """Raises InvalidRequest where a number is beyond what float16 holds (65504); some models have larger residuals."""
    if dtype != "float16":
        return
    largest = max(float(capture.activations.abs().max()) for capture in found.captures)
    if largest > torch.finfo(torch.float16).max:
        raise InvalidRequest(
            f"activations reach {largest:.0f}, which float16 cannot hold; use 'bfloat16' or 'float32'", param="dtype"
        )


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsFile:
    """A safetensors file produced in pieces, since the library writes from a copy of all tensors: `layer.<n>` (row,
    d_model), before them with every token `offsets` (text + 1) and `token_ids` (token), int64."""

    activations: Activations
    dtype: Dtype
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Bytes of the whole file."""
        return len(self._header()) + sum(size for *_, size in self._tensors())

    def pieces(self) -> Iterator[bytes]:
        """Yields the bytes of the file in pieces of about PIECE_BYTES; a longer text is one piece."""
        held = bytearray()
        for part in self._parts():
            held += part
            if len(held) >= PIECE_BYTES:
                yield bytes(held)
                held.clear()
        if held:
            yield bytes(held)

    def _parts(self) -> Iterator[bytes]:
        yield self._header()
        found = self.activations
        if found.every_token:
            for integers in (found.offsets, found.token_ids):
                yield np.asarray(integers, dtype="<i8").tobytes()
        kind = _DTYPES[self.dtype][0]
        for layer in found.layers:
            for rows in found.rows(layer):
                yield rows.to(kind).contiguous().view(torch.uint8).numpy().tobytes()

    def _header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        start = 0
        for name, kind, shape, size in self._tensors():
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
            start += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def _tensors(self) -> Iterator[tuple[str, str, list[int], int]]:
        """Yields (name, dtype, shape, bytes) in the order of the file."""
        found = self.activations
        rows = found.offsets[-1]
        if found.every_token:
            yield "offsets", "I64", [len(found.captures) + 1], 8 * (len(found.captures) + 1)
            yield "token_ids", "I64", [rows], 8 * rows
        kind, name = _DTYPES[self.dtype]
        width = found.captures[0].activations.shape[2]
        for layer in found.layers:
            yield f"layer.{layer}", name, [rows, width], rows * width * kind.itemsize
