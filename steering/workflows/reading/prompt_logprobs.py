"""Log-probabilities of the tokens of given texts, and pooled activations of texts as embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Position
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.shapes import Float, Tensor


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a text. logprob: given the tokens before it, None for the first. top: most probable first."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


async def prompt_logprobs(
    engine: Engine, token_ids: Sequence[tuple[int, ...]], plan: SteeringPlan, top: int
) -> tuple[tuple[ScoredToken, ...], ...]:
    """Scores every token of each text under a plan, with the `top` most probable tokens at its position."""
    prompts = [CapturePrompt(ids, plan) for ids in token_ids]
    captures = await engine.capture(prompts, CaptureSpec((), logits=True), priority=0)
    return tuple(
        _scored(ids, capture.logits, top)
        for ids, capture in zip(token_ids, captures, strict=True)
        if capture.logits is not None
    )


def _scored(ids: tuple[int, ...], logits: Float[Tensor, "token vocab"], top: int) -> tuple[ScoredToken, ...]:
    logprobs = torch.log_softmax(logits[:-1].float(), dim=-1)
    following = torch.tensor(ids[1:])
    own = logprobs.gather(1, following[:, None])[:, 0].tolist()
    best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    tops = [tuple(zip(i, v, strict=True)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    scored = [ScoredToken(token, value, row) for token, value, row in zip(ids[1:], own, tops, strict=True)]
    return (ScoredToken(ids[0], None), *scored)


async def embed(
    engine: Engine, token_ids: Sequence[tuple[int, ...]], layer: int, position: Position
) -> tuple[tuple[float, ...], ...]:
    """Returns one activation of d_model numbers for each text, at one layer."""
    prompts = [CapturePrompt(ids, UNSTEERED) for ids in token_ids]
    captures = await engine.capture(prompts, CaptureSpec((layer,), position=position), priority=0)
    return tuple(tuple(capture.activations[0, 0].tolist()) for capture in captures)
