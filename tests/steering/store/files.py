"""A vector's file, and files that are almost one."""

import json
import struct
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load, save

from steering.cards import LayerQuality, QualityCard, Recommended
from steering.store.blob import encode
from tests.steering.store.planted import planted

KEY = "steering_vector"


def metadata_in(content: bytes) -> dict[str, Any]:
    """The metadata of a file."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
    return metadata


def file_of(tensors: dict[str, torch.Tensor], metadata: dict[str, Any] | str | None) -> bytes:
    """A file with any tensors and any metadata."""
    text = metadata if isinstance(metadata, str) or metadata is None else json.dumps(metadata)
    return bytes(save({k: v.clone() for k, v in tensors.items()}, metadata=None if text is None else {KEY: text}))


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """A file with any header at all."""
    return struct.pack("<Q", len(header)) + header + data


VECTOR = replace(
    planted("warmth", 3),
    description="Wärme",
    tags=("a", "b"),
    recommended=Recommended((1,), (0.25, 1.0)),
    quality=QualityCard(40, 12, {1: LayerQuality(auroc=0.9, auroc_interval=(0.8, 1.0))}),
    provenance={"seed": 7},
)
TENSORS = load(encode(VECTOR))
METADATA = metadata_in(encode(VECTOR))


def changed(**metadata: Any) -> dict[str, Any]:
    return {**METADATA, **metadata}
