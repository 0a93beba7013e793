"""Encodes what the server's process and vLLM's workers send each other: MessagePack, decoded strictly as a declared type.

Nothing that is decoded runs code. Tensors travel as their shape and their float32 values, specs as what a caller writes.
"""

from functools import cache
from typing import Any, TypeVar

import msgspec
import torch

from steering.shapes import Tensor
from steering.spec import InterventionSpec

T = TypeVar("T")

FLOAT32_BYTES = 4


class TensorContent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A float32 tensor. values: in row-major order, as this machine stores them."""

    shape: tuple[int, ...]
    values: bytes


def encode(value: object) -> bytes:
    """Encodes plain types, dataclasses and structs of them. Raises TypeError for other types, tensors not in float32 included."""
    return _ENCODER.encode(value)


def decode(content: bytes, kind: type[T]) -> T:
    """Decodes what `encode` returned for a value of a type. Raises ValueError for anything else."""
    declared: Any = kind
    found: T = _decoder(declared).decode(content)
    return found


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, dec_hook=_decoded)


def _encoded(value: object) -> object:
    if isinstance(value, Tensor):
        if value.dtype != torch.float32:
            raise TypeError(f"tensors are sent in float32, got {value.dtype}")
        return TensorContent(tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(value, InterventionSpec):
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _decoded(kind: Any, value: Any) -> object:
    """Decodes the types that msgspec does not know. kind: a tensor of a stated shape may be a class of jaxtyping."""
    if kind is InterventionSpec:
        return InterventionSpec.model_validate(value)
    if kind is Tensor or getattr(kind, "array_type", None) is Tensor:
        return _tensor(msgspec.convert(value, TensorContent))
    raise ValueError(f"a {kind} cannot be received")


def _tensor(content: TensorContent) -> Tensor:
    count = 1
    for size in content.shape:
        if size < 0:
            raise ValueError(f"a tensor has no shape {content.shape}")
        count *= size
    if count * FLOAT32_BYTES != len(content.values):
        raise ValueError(f"{len(content.values)} bytes are no float32 tensor of shape {content.shape}")
    if not count:
        return torch.empty(content.shape)
    return torch.frombuffer(bytearray(content.values), dtype=torch.float32).view(content.shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encoded)
