"""Computes the fingerprint of a model: equal for the same weights in whatever dtype they were loaded."""

import hashlib
import json

import torch
from transformers import PreTrainedModel

from steering.shapes import Tensor

SAMPLES = 64
"""Values read from each tensor: enough to distinguish any two trainings, cheap for any size of model."""


def fingerprint_of(model: PreTrainedModel) -> str:
    """Returns a SHA-256, in hex, over the architecture and every weight's name, shape and sampled values.

    Weights are parameters and persistent buffers, which hold the packed weights of some quantized models. Values are
    rounded to bfloat16 first, so float32 and bfloat16 loads agree. Call it before float32 weights are cast to float16:
    rounding twice need not equal rounding once.
    """
    persistent = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in persistent]
    weights = sorted([*model.named_parameters(), *buffers], key=lambda item: item[0])
    described = {
        "model_type": model.config.get_text_config().model_type,
        "parameters": [[name, list(weight.shape)] for name, weight in weights],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for _, weight in weights:
        digest.update(_sampled(weight.detach()).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sampled(weight: Tensor) -> Tensor:
    """Returns evenly spaced values, first and last included, as bfloat16 on the CPU."""
    flat = weight.reshape(-1)
    count = min(SAMPLES, flat.numel())
    positions = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
    return flat[positions].to(torch.bfloat16).cpu()
