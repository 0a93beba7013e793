"""Computes the fingerprint of a model, equal for the same weights in whatever dtype they were loaded, and the digest of
its files.

The fingerprint decides whether a vector fits a model, so it leaves the configuration out: another context length or
epsilon keeps the weights. A compiled graph depends on both and on every weight, and is named by the digest.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from steering.shapes import Tensor

SAMPLES = 64
"""Values read from each tensor: enough to distinguish any two trainings, cheap for any size of model."""


def fingerprint_of(model: PreTrainedModel) -> str:
    """Returns a SHA-256, in hex, over the architecture and each weight's name, shape and samples rounded to bfloat16.
    Call it before float32 weights are cast to float16, which would be a second rounding."""
    weights = _weights(model)
    return _digest(model, weights, (weight.detach() for _, weight in weights))


def fingerprint_of_files(model: PreTrainedModel, folder: Path) -> str | None:
    """Returns the same fingerprint from safetensors files; None where a weight is missing under its name."""
    weights = _weights(model)
    where: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            where.update(dict.fromkeys(file.keys(), path))
    if any(name not in where for name, _ in weights):
        return None

    def read() -> Iterable[Tensor]:
        for name, _ in weights:
            with safe_open(where[name], "pt") as file:
                yield file.get_tensor(name)

    return _digest(model, weights, read())


def content_digest(folder: Path) -> str:
    """Returns a SHA-256, in hex, over the configuration and the bytes of all weights in the folder of a model."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Returns parameters and persistent buffers by name, in the order of the fingerprint."""
    persistent = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in persistent]
    return sorted([*model.named_parameters(), *buffers], key=lambda item: item[0])


def _parts(value: Tensor) -> list[Tensor]:
    """Returns the tensors that hold a weight: torchao keeps a quantized one in several, and its own class reads no elements."""
    if not is_traceable_wrapper_subclass(value):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(value, name))]


def _digest(model: PreTrainedModel, weights: list[tuple[str, Tensor]], values: Iterable[Tensor]) -> str:
    described = {
        "model_type": model.config.get_text_config().model_type,
        "parameters": [[name, list(weight.shape)] for name, weight in weights],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for flat in (part.reshape(-1) for value in values for part in _parts(value)):
        count = min(SAMPLES, flat.numel())  # evenly spaced, first and last included
        positions = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
        digest.update(flat[positions].to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
