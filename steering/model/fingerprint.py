"""The fingerprint of a model: the same for the same weights, whatever dtype they were loaded in."""

import hashlib
import json

import torch
from transformers import PreTrainedModel

from steering.shapes import Tensor

SAMPLES = 64
"""Values read from each parameter: enough to tell any two trainings apart, cheap for any size of model."""


def fingerprint_of(model: PreTrainedModel) -> str:
    """SHA-256, in hex, over the architecture, every parameter's name and shape, and values sampled from it.

    Values are rounded to bfloat16 first, so float32 and bfloat16 loads agree. Do not call it on float16 weights made
    from float32 ones: rounding twice need not equal rounding once.
    """
    parameters = sorted(model.named_parameters())
    described = {
        "model_type": model.config.get_text_config().model_type,
        "parameters": [[name, list(parameter.shape)] for name, parameter in parameters],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for _, parameter in parameters:
        digest.update(_sampled(parameter.detach()).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sampled(parameter: Tensor) -> Tensor:
    """Evenly spaced values, first and last included, as bfloat16 on the processor."""
    flat = parameter.reshape(-1)
    count = min(SAMPLES, flat.numel())
    positions = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
    return flat[positions].to(torch.bfloat16).cpu()
