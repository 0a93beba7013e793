"""The real thing: decode passes captured on a CUDA device give what the eager ones give there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.execution.captured_decode import CudaGraphs
from steering.model.device import choose_device
from steering.model.loading import opened
from steering.shapes import Logits, Tensor
from tests.engines import random_requests, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.recorders import RefusingRecorder
from tests.steering.engine.execution.captures import FAMILY, PROMPTS, adds, assert_same

pytestmark = pytest.mark.gpu


def last_cuda() -> torch.device:
    """Not the first where there are several: graphs are of the model's device."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return choose_device(f"cuda:{torch.cuda.device_count() - 1}")


@asynccontextmanager
async def on_cuda(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> AsyncIterator[tuple[TransformersEngine, TransformersEngine]]:
    """An eager engine and one that captures."""
    device = last_cuda()
    models = [FAMILIES[family]().to(device) for _ in range(2)]
    eager = TransformersEngine(opened(models[0], tokenizer, name="tiny"), recorder=RefusingRecorder())
    captured = TransformersEngine(opened(models[1], tokenizer, name="tiny"))
    try:
        yield eager, captured
    finally:
        await captured.close()
        await eager.close()


def graphs_of(engine: TransformersEngine) -> int:
    assert engine._runner.captured is not None
    return engine._runner.captured.kept


@pytest.mark.parametrize("family", FAMILY)
async def test_cuda_graphs(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Also once all graphs were dropped and made anew."""
    async with on_cuda(family, hf_byte_tokenizer) as (eager, captured):
        requests = [*await adds(eager, -1.0, -0.5, 0.0, 0.5, 1.0), *await random_requests(eager.info, PROMPTS, 8, 24)]
        expected = await run_alone(eager, requests)
        for _ in range(2):
            assert_same(await run_all(captured, requests), expected)
        assert graphs_of(captured) > 0
        long = GenerationRequest(tuple(b"x" * 140), sampling(20), requests[0].plan)
        assert_same(await run_all(captured, [long]), await run_alone(eager, [long]))
        for _ in range(2):
            assert_same(await run_all(captured, requests), expected)
        assert graphs_of(captured) > 0


def test_a_failed_capture_leaves_the_device_as_it_was() -> None:
    """Whatever asks the device for a number cannot be captured; what comes after it is computed and captured as before."""
    device = last_cuda()
    two, graphs = torch.tensor([1, 2], device=device), CudaGraphs(device)

    def asking(token_ids: Tensor, positions: Tensor) -> Logits:
        return (token_ids + int(positions.sum()))[:, None].float()

    before = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            graphs.record(asking, two, two)
        assert torch.cuda.current_stream() == before
        replay = graphs.record(lambda token_ids, positions: (token_ids * positions)[:, None].float(), two, two)
        assert replay().flatten().tolist() == [1.0, 4.0]
        del replay
