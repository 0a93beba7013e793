"""The logit lens: what the model would say if it stopped at a layer, token by token, plain and steered (nostalgebraist, 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt
from steering.engine.capabilities import unembedding_of
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread

LOGITS_AT_ONCE = 32 * 1024 * 1024
"""Logits held at a time, in numbers (128 MB)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A token that a residual would become, with its log probability."""

    token_id: int
    text: str
    logprob: float


Row: TypeAlias = tuple[Prediction, ...]
"""The most likely tokens at one position, best first."""


@dataclass(frozen=True, slots=True, eq=False)
class LogitLensRequest:
    """All of the prompt is read as prompt; its last position is where the first generated token would be predicted, so a
    plan for generated positions acts there and nowhere else. An empty plan is read once."""

    prompt: Prompt
    plan: SteeringPlan = UNSTEERED
    layers: Literal["all"] | tuple[int, ...] = "all"
    top_k: int = 5


@dataclass(frozen=True, slots=True)
class LensLayer:
    """One layer: predictions of the next token at every position; steered None without a plan."""

    layer: int
    plain: tuple[Row, ...]
    steered: tuple[Row, ...] | None


@dataclass(frozen=True, slots=True)
class LogitLens:
    """Layers in ascending order. The last block's row is what the model itself predicts."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    layers: tuple[LensLayer, ...]


async def logit_lens(engine: Engine, request: LogitLensRequest) -> LogitLens:
    """softmax(unembed(final_norm(r))) of the residual r after each layer, at each token; log p of the `top_k` most likely tokens.

    Raises InvalidRequest for layers or a top_k that cannot be, and what the engine raises.
    """
    layers = layer_indices(request.layers, engine.info.layer_count)
    if not 1 <= request.top_k <= engine.info.vocab_size:
        raise InvalidRequest(f"top_k must be 1 to {engine.info.vocab_size}, got {request.top_k}", param="top_k")
    plans = (UNSTEERED,) if request.plan.empty else (UNSTEERED, request.plan)
    captures = await engine.capture(
        [CapturePrompt(request.prompt, plan) for plan in plans],
        CaptureSpec(layers=layers, position="all"),
        priority=0,
    )
    residuals = [one.activations[index] for one in captures for index in range(len(layers))]
    found = [await _rows(engine, residual, request.top_k) for residual in residuals]
    return _assembled(engine, captures, layers, found)


def _assembled(
    engine: Engine, captures: Sequence[Capture], layers: tuple[int, ...], found: Sequence[tuple[Row, ...]]
) -> LogitLens:
    """found: the plain rows of every layer, then the steered ones if there are any."""
    steered: Sequence[tuple[Row, ...] | None] = found[len(layers) :] or [None] * len(layers)
    ids = captures[0].token_ids
    return LogitLens(
        token_ids=ids,
        tokens=tuple(engine.tokenizer.token_text(token) for token in ids),
        layers=tuple(LensLayer(*one) for one in zip(layers, found, steered, strict=False)),
    )


async def _rows(engine: Engine, residual: Float[Tensor, "token d_model"], top_k: int) -> tuple[Row, ...]:
    """One layer of one reading, as many positions at a time as their logits may be held."""
    rows: list[Row] = []
    for part in torch.split(residual, max(1, LOGITS_AT_ONCE // engine.info.vocab_size)):
        rows += await run_in_thread(_most_likely, engine, await unembedding_of(engine).unembed(part), top_k)
    return tuple(rows)


def _most_likely(engine: Engine, logits: Float[Tensor, "token vocab"], top_k: int) -> list[Row]:
    values, ids = logits.topk(top_k, dim=1)
    logprobs = values - logits.logsumexp(dim=1, keepdim=True)
    text = engine.tokenizer.token_text
    return [
        tuple(Prediction(token, text(token), logprob) for token, logprob in zip(row, scores, strict=True))
        for row, scores in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
