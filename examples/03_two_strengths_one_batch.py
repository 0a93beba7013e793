"""Many strengths in one batch: every row has its own steering, and gives exactly the tokens that it gives alone."""

import asyncio
import sys
from pathlib import Path

from steering.engine import open_engine
from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.options import EngineOptions
from steering.plan.resolve import resolve
from steering.spec import InterventionSpec, SteeringSpec
from steering.store import open_store
from steering.workflows.extract import registered
from steering.workflows.generate import answer

STRENGTHS = (-0.1, 0.0, 0.1)


async def main(model: str = "smollm2-135m-instruct") -> tuple[list[str], list[str]]:
    """The texts from one batch and the texts one by one; they are the same."""
    options = EngineOptions(model=model, cache_dir=Path.home() / ".cache" / "steering-server", dtype="float32")
    engine = open_engine("transformers", options)
    store = await open_store("memory://")
    try:
        await store.shared.vectors.put(
            registered(engine.info, "first", {"1": [1.0] + [0.0] * (engine.info.d_model - 1)})
        )
        requests = []
        for strength in STRENGTHS:
            one = InterventionSpec(vector="first", strength=strength, unit="relative", layers=(1,))
            plan = await resolve(SteeringSpec(interventions=(one,)), store.shared.vectors, engine.info)
            sampling = SamplingParams(max_tokens=16, temperature=0.8, seed=7)
            requests.append(GenerationRequest("Once upon a time", sampling, plan))
        together = [found.text for found in await asyncio.gather(*(answer(engine, one) for one in requests))]
        alone = [(await answer(engine, one)).text for one in requests]
    finally:
        await engine.close()
        await store.close()
    for strength, text in zip(STRENGTHS, together, strict=True):
        print(f"{strength:+.1f} {text!r}")
    print("the same alone:", together == alone)
    return together, alone


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
