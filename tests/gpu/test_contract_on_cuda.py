"""The contract of engines and the slow reference, on a CUDA device."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine import open_engine
from steering.engine.api import Engine, GenerationRequest
from steering.engine.options import EngineLimits, EngineOptions
from steering.model.layout import find_layout
from steering.spec import SteeringSpec
from tests.contracts.test_engines import *  # noqa: F403 - the same tests, with the engine below
from tests.engines import run, run_all, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for
from tests.reference import Reference

PROMPT = tuple(b"Once upon a time there was a")


@pytest.fixture
async def engine(tiny_folder: Path) -> AsyncIterator[Engine]:
    engine = open_engine("transformers", EngineOptions(str(tiny_folder), tiny_folder, device="cuda", dtype="float32"))
    yield engine
    await engine.close()


@pytest.mark.parametrize("family", sorted(FAMILIES))
async def test_every_family_agrees_with_the_reference(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path)
    hf_byte_tokenizer.save_pretrained(tmp_path)
    engine = open_engine("transformers", EngineOptions(str(tmp_path), tmp_path, device="cuda", dtype="float32"))
    try:
        vectors = vectors_for(engine.info)
        for seed in range(4):
            items = random_items(seed, engine.info.layer_count)
            plan = await plan_for(items, vectors, engine.info)
            found = await run(engine, GenerationRequest(PROMPT, sampling(12), plan))
            spec = SteeringSpec.model_validate({"interventions": items})
            assert found.tokens == Reference(model, find_layout(model).blocks, spec, vectors).generate(PROMPT, 12)
    finally:
        await engine.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
async def test_long_prompts_in_pieces_and_a_full_batch_end(dtype: str, tiny_folder: Path) -> None:
    limits = EngineLimits(max_running=16, prefill_tokens=16)
    options = EngineOptions(str(tiny_folder), tiny_folder, device="cuda", dtype=dtype, limits=limits)
    engine = open_engine("transformers", options)
    try:
        requests = [GenerationRequest(tuple(range(20 + n, 120 + n)), sampling(20, seed=n)) for n in range(40)]
        outcomes = await run_all(engine, requests)
        assert all(len(outcome.tokens) == 20 for outcome in outcomes)
    finally:
        await engine.close()
