"""The logit lens: what the model would say if it stopped at a layer, token by token, plain and steered (nostalgebraist, 2020)."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt
from steering.engine.capabilities import unembedding_of
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.reading import LensLayerAnswer, PredictionAnswer
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread

LOGITS_AT_ONCE = 32 * 1024 * 1024
"""Logits held at a time, in numbers (128 MB)."""

Row: TypeAlias = list[PredictionAnswer]
"""The most likely tokens at one position, best first."""


async def logit_lens(
    engine: Engine,
    prompt: Prompt,
    plan: SteeringPlan = UNSTEERED,
    layers: Literal["all"] | tuple[int, ...] = "all",
    top_k: int = 5,
) -> list[LensLayerAnswer]:
    """softmax(unembed(final_norm(r))) of the residual r after each layer, at each token; log p of the `top_k` most likely tokens.

    Layers are in ascending order; the last block's row is what the model itself predicts. All of the prompt is read as
    prompt; its last position is where the first generated token would be predicted, so a plan for generated positions acts
    there and nowhere else. An empty plan is read once.

    Raises InvalidRequest for layers or a top_k that cannot be, and what the engine raises.
    """
    indices = layer_indices(layers, engine.info.layer_count)
    if not 1 <= top_k <= engine.info.vocab_size:
        raise InvalidRequest(f"top_k must be 1 to {engine.info.vocab_size}, got {top_k}", param="top_k")
    plans = (plan.unsteered,) if plan.empty else (plan.unsteered, plan)
    captures = await engine.capture(
        [CapturePrompt(prompt, one) for one in plans], CaptureSpec(layers=indices, position="all"), priority=0
    )
    found = [[await _rows(engine, residual, top_k) for residual in one.activations] for one in captures]
    steered: Sequence[list[Row] | None] = [None] * len(indices) if plan.empty else found[1]
    layers_of = zip(indices, found[0], steered, strict=True)
    return await run_in_thread(
        lambda: [LensLayerAnswer(layer=at, plain=one, steered=two) for at, one, two in layers_of]
    )


async def _rows(engine: Engine, residual: Float[Tensor, "token d_model"], top_k: int) -> list[Row]:
    """One layer of one reading, as many positions at a time as their logits may be held."""
    rows: list[Row] = []
    for part in torch.split(residual, max(1, LOGITS_AT_ONCE // engine.info.vocab_size)):
        rows += await run_in_thread(_most_likely, engine, await unembedding_of(engine).unembed(part), top_k)
    return rows


def _most_likely(engine: Engine, logits: Float[Tensor, "token vocab"], top_k: int) -> list[Row]:
    values, ids = logits.topk(top_k, dim=1)
    logprobs = values - logits.logsumexp(dim=1, keepdim=True)
    text = engine.tokenizer.token_text
    return [
        [PredictionAnswer(id=token, text=text(token), logprob=score) for token, score in zip(row, scores, strict=True)]
        for row, scores in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
