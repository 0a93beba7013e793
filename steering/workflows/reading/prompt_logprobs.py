"""Log-probabilities of the tokens of given texts, and pooled activations of texts as embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Position
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread
from steering.workflows.reading.score import LOGITS_BOUND, parts

ROWS = 64
"""Positions whose log-probabilities are computed at a time."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a text. logprob: given the tokens before it, None for the first. top: most probable first."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


async def prompt_logprobs(
    engine: Engine, token_ids: Sequence[tuple[int, ...]], plan: SteeringPlan, top: int
) -> tuple[tuple[ScoredToken, ...], ...]:
    """Scores every token of each text under a plan, with the `top` most probable tokens at its position.

    As many texts are read at a time as have their logits in LOGITS_BOUND, or one that is longer.
    """
    found: list[tuple[ScoredToken, ...]] = []
    for part in parts(token_ids, 0, engine.info.vocab_size):
        prompts = [CapturePrompt(ids, plan) for ids in part]
        captures = await engine.capture(prompts, CaptureSpec((), logits=True), priority=0)
        found += await run_in_thread(lambda read: [_scored(one, top) for one in read], captures)
    return tuple(found)


def logit_bytes(token_ids: Sequence[tuple[int, ...]], vocabulary: int) -> int:
    """Returns the memory of the logits that `prompt_logprobs` holds: in pieces, and then as one tensor."""
    tokens = list(map(len, token_ids))
    return 2 * 4 * min(max(LOGITS_BOUND, max(tokens) * vocabulary), sum(tokens) * vocabulary)


def _scored(capture: Capture, top: int) -> tuple[ScoredToken, ...]:
    ids, logits = capture.token_ids, capture.logits
    assert logits is not None, "asked for with CaptureSpec.logits"
    scored = [ScoredToken(ids[0], None)]
    for start in range(0, len(ids) - 1, ROWS):
        following = ids[start + 1 : start + 1 + ROWS]
        scored += _scored_rows(following, logits[start : start + len(following)], top)
    return tuple(scored)


def _scored_rows(following: tuple[int, ...], logits: Float[Tensor, "token vocab"], top: int) -> list[ScoredToken]:
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    own = logprobs.gather(1, torch.tensor(following)[:, None])[:, 0].tolist()
    best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    tops = [tuple(zip(i, v, strict=True)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return [ScoredToken(token, value, row) for token, value, row in zip(following, own, tops, strict=True)]


async def embed(
    engine: Engine, token_ids: Sequence[tuple[int, ...]], layer: int, position: Position
) -> tuple[tuple[float, ...], ...]:
    """Returns one activation of d_model numbers for each text, at one layer."""
    prompts = [CapturePrompt(ids, UNSTEERED) for ids in token_ids]
    captures = await engine.capture(prompts, CaptureSpec((layer,), position=position), priority=0)
    return await run_in_thread(lambda: tuple(tuple(capture.activations[0, 0].tolist()) for capture in captures))
