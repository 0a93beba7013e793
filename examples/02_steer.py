"""Steer one prompt with a vector of given numbers, and read what was really done. No server: the library alone."""

import asyncio
import sys
from pathlib import Path

import torch

from steering.engine import open_engine
from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.options import EngineOptions
from steering.plan.resolve import resolve
from steering.spec import InterventionSpec, SteeringSpec
from steering.store import open_store
from steering.workflows.extract import registered
from steering.workflows.generate import Answer, answer


async def main(model: str = "smollm2-135m-instruct") -> tuple[Answer, Answer]:
    """The answer without and with steering; both are printed."""
    engine = open_engine(
        "transformers", EngineOptions(model=model, cache_dir=Path.home() / ".cache" / "steering-server")
    )
    store = await open_store("memory://")
    try:
        # A random direction changes the text too, without a meaning. Effects of vectors are compared with such a control.
        numbers = torch.randn(engine.info.d_model, generator=torch.Generator().manual_seed(0)).tolist()
        await store.shared.vectors.put(registered(engine.info, "random", {"1": numbers}))
        spec = SteeringSpec(
            interventions=(InterventionSpec(vector="random", strength=0.2, unit="relative", layers=(1,)),)
        )
        plan = await resolve(spec, store.shared.vectors, engine.info)
        sampling = SamplingParams(max_tokens=24)
        plain = await answer(engine, GenerationRequest("The weather today is", sampling))
        steered = await answer(engine, GenerationRequest("The weather today is", sampling, plan))
    finally:
        await engine.close()
        await store.close()
    print("plain:  ", plain.text)
    print("steered:", steered.text)
    print("dose by layer:", dict(steered.finish.steering.doses[0]))
    return plain, steered


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
