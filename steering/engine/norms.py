"""Measures the typical norm of the residual stream after each block, the unit of planned relative doses."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import torch

from steering.concepts.loader import load_neutral
from steering.engine.api import CapturePrompt, CaptureSpec, Engine
from steering.model.info import ModelInfo

PROMPTS = 16
PROMPTS_PER_CAPTURE = 4  # bounds memory to a few hundred residuals a layer


async def measure_typical_norms(engine: Engine, prompts: tuple[str, ...] | None = None) -> tuple[float, ...]:
    """Returns the median |r| after each block over neutral texts without steering, one number a layer.

    The first position of a text is left out: models keep a huge residual there, whatever the token is.
    """
    texts = load_neutral()[:PROMPTS] if prompts is None else prompts
    spec = CaptureSpec(layers=tuple(range(engine.info.layer_count)), position="all")
    norms: list[torch.Tensor] = []
    for start in range(0, len(texts), PROMPTS_PER_CAPTURE):
        part = [CapturePrompt(text) for text in texts[start : start + PROMPTS_PER_CAPTURE]]
        captures = await engine.capture(part, spec)
        norms.extend(capture.activations[:, 1:].float().norm(dim=2) for capture in captures)
    return tuple(torch.cat(norms, dim=1).median(dim=1).values.tolist())


class OpenedEngine(Engine, Protocol):
    """An engine that is being opened, so that its info may still be completed."""

    info: ModelInfo


async def complete(engine: OpenedEngine, check: Callable[[], Awaitable[None]] | None = None) -> None:
    """Completes the info of an engine with the typical norms, which every plan is judged by, then checks the engine.

    Closes it where that fails.
    """
    try:
        engine.info = replace(engine.info, typical_norms=await measure_typical_norms(engine))
        if check is not None:
            await check()
    except BaseException:
        await engine.close()
        raise
