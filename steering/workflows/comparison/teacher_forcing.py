"""Given tokens re-read by the model: how likely the unsteered model finds them, and how far a plan bends its predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine
from steering.plan.types import SteeringPlan
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread

LOGITS_BOUND = 256 * 1024 * 1024
"""Logits held for one answer, in numbers: 1 GiB. A longer one is not measured, and the result says so."""
ROWS = 32


@dataclass(frozen=True, slots=True)
class TokenMeasures:
    """Per generated token, in nats: surprise = -log p of the unsteered model; divergence = KL(plan || unsteered)."""

    surprise: tuple[float, ...]
    divergence: tuple[float, ...]


async def measure_tokens(
    engine: Engine, prompt: tuple[int, ...], tokens: tuple[int, ...], plan: SteeringPlan
) -> TokenMeasures | None:
    """Teacher-forced along `tokens` after `prompt`, both models on that prompt. Logits as they are: temperature 1, no filter.

    None where there are too many tokens to hold their logits."""
    if (len(tokens) + 1) * engine.info.vocab_size > LOGITS_BOUND:
        return None
    if not tokens:
        return TokenMeasures((), ())
    plans = (plan.unsteered,) if plan.empty else (plan.unsteered, plan)
    captures = await engine.capture(
        [CapturePrompt(prompt + tokens, one, len(prompt), first=len(prompt) - 1) for one in plans],
        CaptureSpec(layers=(), logits=True),
        priority=0,
    )
    plain, steered = predicting(captures[0], len(tokens)), predicting(captures[-1], len(tokens))
    surprise = await run_in_thread(surprises, plain, tokens)
    divergence = (0.0,) * len(tokens) if plan.empty else await run_in_thread(divergences, steered, plain)
    return TokenMeasures(surprise, divergence)


def predicting(capture: Capture, count: int) -> Float[Tensor, "token vocab"]:
    """Logits at the positions that predict `count` tokens after a prompt, of a capture from the prompt's last position on."""
    assert capture.logits is not None, "asked for with CaptureSpec.logits"
    return capture.logits[:count]


def surprises(logits: Float[Tensor, "token vocab"], tokens: Sequence[int]) -> tuple[float, ...]:
    """-log softmax(logits)[token] for each row, in nats."""
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return tuple((logits.double().logsumexp(dim=1) - chosen.double()).tolist())


def divergences(logits: Float[Tensor, "token vocab"], reference: Float[Tensor, "token vocab"]) -> tuple[float, ...]:
    """KL(softmax(logits) || softmax(reference)) = sum_v p_v (log p_v - log q_v) for each row, in nats, float64."""
    values: list[float] = []
    for start in range(0, len(logits), ROWS):
        log_p, log_q = (rows[start : start + ROWS].double().log_softmax(dim=1) for rows in (logits, reference))
        values += (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp(min=0.0).tolist()
    return tuple(values)
