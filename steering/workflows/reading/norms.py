"""How long residuals typically are after each block: what a planned relative dose is measured against."""

import torch

from steering.concepts.loader import load_neutral
from steering.engine.api import CapturePrompt, CaptureSpec, Engine

PROMPTS = 16
PROMPTS_AT_A_TIME = 4
"""Bounds what is held at once to a few hundred residuals a layer."""


async def measure_typical_norms(engine: Engine, prompts: tuple[str, ...] | None = None) -> tuple[float, ...]:
    """Median |r| after each block over neutral text, unsteered, one number a layer.

    The first position of a text is left out: models keep a huge residual there that belongs to no word.
    """
    texts = load_neutral()[:PROMPTS] if prompts is None else prompts
    spec = CaptureSpec(layers=tuple(range(engine.info.layer_count)), position="all")
    norms: list[torch.Tensor] = []
    for start in range(0, len(texts), PROMPTS_AT_A_TIME):
        few = [CapturePrompt(text) for text in texts[start : start + PROMPTS_AT_A_TIME]]
        captures = await engine.capture(few, spec)
        norms.extend(capture.activations[:, 1:].float().norm(dim=2) for capture in captures)
    return tuple(torch.cat(norms, dim=1).median(dim=1).values.tolist())
