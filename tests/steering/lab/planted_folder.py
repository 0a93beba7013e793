"""A small sparse autoencoder in SAELens format with planted features."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FEATURES = 12


def planted_folder(folder: Path, d_model: int, planted: dict[int, torch.Tensor], layer: int = 1, **config: Any) -> Path:
    """Writes a folder. planted: feature -> its direction; the other features are random. The encoder is the decoder's transpose."""
    generator = torch.Generator().manual_seed(1)
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, d_model, generator=generator), dim=1)
    for feature, direction in planted.items():
        decoder[feature] = torch.nn.functional.normalize(direction, dim=0)
    folder.mkdir()
    tensors = {
        "W_dec": decoder,
        "W_enc": decoder.T.contiguous(),
        "b_enc": torch.zeros(FEATURES),
        "b_dec": torch.zeros(d_model),
        "threshold": torch.full((FEATURES,), 0.1),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    written = {
        "architecture": "standard",
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "model_name": "tiny",
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(written))
    return folder
