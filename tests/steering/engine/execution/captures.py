"""What captured passes are tried on, here and on a CUDA device: prompts, requests that add, how they run side by side from
their first token on, and when answers are the same."""

import asyncio
import threading

import pytest

from steering.engine.api import GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from tests.engines import Outcome, run_all, sampling
from tests.plans import plan_for, vectors_for
from tests.polling import until

PROMPTS = [tuple(b"Once upon a time"), tuple(b"Hm"), tuple(b"A longer prompt than the sliding window of the model is")]
FAMILY = ["llama", "gemma3", "qwen2"]


async def adds(
    engine: TransformersEngine, *strengths: float, layers: str | list[int] = "all"
) -> list[GenerationRequest]:
    """A request for each strength, adding two vectors; of different lengths, so that rows leave one by one."""
    vectors = vectors_for(engine.info)
    return [
        GenerationRequest(
            PROMPTS[number % len(PROMPTS)],
            sampling(24 + number, logprobs=0),
            await plan_for(
                [{"vector": name, "strength": strength, "layers": layers} for name in ("alpha", "beta")],
                vectors,
                engine.info,
            ),
        )
        for number, strength in enumerate(strengths)
    ]


async def together(engine: TransformersEngine, requests: list[GenerationRequest]) -> list[Outcome]:
    """As `run_all`, from an idle engine that begins once it has them all: no row decodes alone while others are handed over."""
    held, complete = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        complete.wait(60)

    engine._loop.arrive(hold)
    try:
        await until(held.is_set)
        outcomes = asyncio.create_task(run_all(engine, requests))
        await until(lambda: engine.stats().waiting == len(requests))
    finally:
        complete.set()
    return await outcomes


def assert_same(found: list[Outcome], expected: list[Outcome]) -> None:
    """Tokens, log-probabilities, and what was measured."""
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert [e.logprob for e in one.events] == pytest.approx([e.logprob for e in other.events], abs=1e-4)
        for dose, expected_dose in zip(one.finish.steering.doses, other.finish.steering.doses, strict=True):
            assert dose == pytest.approx(expected_dose, rel=1e-3)
