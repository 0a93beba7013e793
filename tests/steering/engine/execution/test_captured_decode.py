"""Decode passes that are recorded and replayed give what the eager ones give, token for token, and to others than those
who were there when they were recorded."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest, Reading
from steering.engine.transformers.batch import Batch
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.execution.captured_decode import MOST_KEPT, WORTH, Recorder
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.sequence import Sequence, Stream
from steering.engine.transformers.steering.stacked import SteeringBatch
from steering.model.layout import find_layout
from steering.model.loading import opened
from tests.engines import random_requests, run, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for
from tests.recorders import RefusingRecorder, TracedRecorder
from tests.steering.engine.execution.captures import FAMILY, PROMPTS, adds, assert_same, together


@asynccontextmanager
async def recording(
    family: str, tokenizer: PreTrainedTokenizerFast, recorder: Recorder | None
) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(opened(FAMILIES[family](), tokenizer, name="tiny"), recorder=recorder)
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def beside_eager(
    family: str, tokenizer: PreTrainedTokenizerFast, recorder: Recorder
) -> AsyncIterator[tuple[TransformersEngine, TransformersEngine]]:
    """An engine that computes every pass anew, and one that records."""
    async with recording(family, tokenizer, None) as eager, recording(family, tokenizer, recorder) as it:
        yield eager, it


@pytest.mark.parametrize("family", FAMILY)
async def test_additive_rows_and_their_dose(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    recorder = TracedRecorder()
    async with beside_eager(family, hf_byte_tokenizer, recorder) as (eager, it):
        requests = await adds(eager, -1.0, -0.5, 0.0, 0.5, 1.0)
        expected = await run_alone(eager, requests)
        for _ in range(2):  # the second time there are graphs from the first on
            assert_same(await run_all(it, requests), expected)
    assert 0 < recorder.recorded < recorder.replayed


@pytest.mark.parametrize("family", FAMILY)
async def test_plans_of_every_kind(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Conditions and schedules among them, sampled and greedy, in one batch and alone."""
    recorder = TracedRecorder()
    async with beside_eager(family, hf_byte_tokenizer, recorder) as (eager, it):
        requests = await random_requests(eager.info, PROMPTS, 24, 24)
        expected = await run_alone(eager, requests)
        assert_same(await run_all(it, requests), expected)
        assert_same(await run_alone(it, requests), expected)
    assert recorder.replayed > 100


CONDITIONAL = [
    {
        "vector": "alpha",
        "strength": 2.0,
        "layers": [2],
        "when": {"vector": "beta", "layer": 1, "above": 0.0},
    },
    {"vector": "beta", "operation": "ablate", "layers": [0]},
]


async def test_one_stack_of_rows_is_one_graph(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Decisions, doses and firings are kept on the device, so that its graph serves as long as nobody joins or leaves."""
    recorder = TracedRecorder()
    async with beside_eager("llama", hf_byte_tokenizer, recorder) as (eager, it):
        plan = await plan_for(CONDITIONAL, vectors_for(eager.info), eager.info)
        requests = [GenerationRequest(prompt, sampling(40), plan) for prompt in PROMPTS]
        expected = await run_alone(eager, requests)
        found = await together(it, requests)
        assert_same(found, expected)
        assert [o.finish.steering.fired_at for o in found] == [o.finish.steering.fired_at for o in expected]
    assert recorder.recorded == 1
    assert recorder.replayed > 20


def stacks() -> int:
    """Stacks of rows with more than adds that this process keeps."""
    gc.collect()
    return sum(type(one) is SteeringBatch and bool(one.visits) for one in gc.get_objects())


async def test_of_stacks_of_rows_few_are_kept(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """The one of the only graph and the last that was met: those of ended answers are let go, and with them rows and prompts."""
    before = stacks()
    async with recording("llama", hf_byte_tokenizer, TracedRecorder()) as it:
        plan = await plan_for(CONDITIONAL, vectors_for(it.info), it.info)
        for tokens in (4, 30, 4, 4, 4):
            await run(it, GenerationRequest(PROMPTS[0], sampling(tokens), plan))
        assert stacks() - before == 2


async def test_a_graph_serves_others_than_it_was_recorded_with(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Other prompts, other strengths, another length of the same bucket."""
    recorder = TracedRecorder()
    async with beside_eager("llama", hf_byte_tokenizer, recorder) as (eager, it):
        await together(it, await adds(it, 0.3, -0.7))
        recorded = recorder.recorded
        others = await adds(it, 2.0, -2.0)
        assert_same(await together(it, others), await run_alone(eager, others))
    assert recorder.recorded == recorded


async def test_graphs_are_dropped_when_the_cache_grows(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """They would read and write where keys and values no longer are."""
    recorder = TracedRecorder()
    async with beside_eager("llama", hf_byte_tokenizer, recorder) as (eager, it):
        [alone] = await adds(eager, 1.0)
        expected = await run(eager, alone)
        many = await adds(eager, *(0.1 * number for number in range(9)))
        long = GenerationRequest(tuple(b"x" * 140), sampling(20), alone.plan)
        for grow in ([alone], many, [long]):
            assert_same(await run_all(it, grow), await run_alone(eager, grow))
            assert_same([await run(it, alone)], [expected])
    assert recorder.recorded > 3


async def test_layers_without_steering_are_left_alone(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Of one layer, of all, and of none: each is a graph of its own, and the answers are theirs."""
    recorder = TracedRecorder()
    async with beside_eager("llama", hf_byte_tokenizer, recorder) as (eager, it):
        unsteered = GenerationRequest(PROMPTS[0], sampling(24))
        requests = [unsteered, *await adds(eager, 1.5), *await adds(eager, 1.5, layers=[1])]
        expected = await run_alone(eager, requests)
        assert len({tuple(one.tokens) for one in expected}) == 3
        assert_same(await run_alone(it, requests), expected)
        assert_same(await run_alone(it, requests), expected)
    assert recorder.recorded == 3


async def test_readouts_are_read_without_a_graph(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    recorder = TracedRecorder()
    async with recording("llama", hf_byte_tokenizer, recorder) as it:
        reading = Reading("alpha", 1, torch.ones(it.info.d_model), 1.0)
        read = GenerationRequest(PROMPTS[0], sampling(12), readings=(reading,))
        outcome = await run(it, read)
    assert all("alpha" in event.readout for event in outcome.events[:-1])
    assert recorder.recorded == 0


async def test_what_cannot_be_recorded_is_said_once_and_computed_all_the_same(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    recorder = RefusingRecorder()
    async with beside_eager("llama", hf_byte_tokenizer, recorder) as (eager, it):
        requests = await adds(eager, 1.0, -1.0)
        with structlog.testing.capture_logs() as logs:
            assert_same(await run_all(it, requests), await run_alone(eager, requests))
    assert recorder.asked == 1
    [line] = [line for line in logs if line["event"] == "decode_not_captured"]
    assert "stream is capturing" in line["reason"]


async def test_few_passes_of_a_shape_are_not_worth_a_graph(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    recorder = TracedRecorder()
    async with recording("llama", hf_byte_tokenizer, recorder) as it:
        await run(it, GenerationRequest(PROMPTS[0], sampling(WORTH + 1)))  # the first token is the prompt's
        assert recorder.recorded == 0
        await run(it, GenerationRequest(PROMPTS[0], sampling(2)))
    assert recorder.recorded == 1


async def test_graphs_are_bounded_and_the_oldest_goes(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Asked for more lengths than are kept, the first is recorded again."""
    recorder = TracedRecorder()
    async with recording("llama", hf_byte_tokenizer, recorder) as it:
        await run(it, GenerationRequest(PROMPTS[0], sampling(2)))
        runner, device = it._runner, torch.device("cpu")
        assert runner.captured is not None
        two = torch.tensor([1, 2])
        for length in (*range(1, MOST_KEPT + 2), 1, MOST_KEPT + 1):
            batch = Batch(decode=True, segments=(), token_ids=two, positions=two, slots=two, length=length)
            steering = SteeringBatch(batch, runner.bank, torch.zeros(2, 0), device)
            for _ in range(WORTH + 1):
                runner.captured.decode(
                    batch, steering, lambda ids, positions: ids[:, None].float() + positions[:, None]
                )
        assert runner.captured.kept == MOST_KEPT
    assert recorder.recorded == MOST_KEPT + 2


ON_ITS_DEVICE = [name for name in FAMILIES if name not in {"bloom", "falcon", "mixtral", "qwen2_moe"}]
"""BLOOM and Falcon build their own masks and decode row by row; mixtures multiply groups, which tensors without data do in bfloat16 alone."""


@pytest.mark.parametrize("family", ON_ITS_DEVICE)
async def test_a_decode_pass_stays_on_its_device_and_asks_it_for_no_number(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """On the device whose tensors have no data, which meet no tensor of another device and have no value to tell."""
    model = FAMILIES[family]()
    info = opened(model, hf_byte_tokenizer, name="tiny").info
    vectors, nowhere = vectors_for(info), torch.device("meta")
    runner = ModelRunner(model.to(nowhere), find_layout(model), nowhere)
    plans = [await plan_for(random_items(seed + 500, info.layer_count), vectors, info) for seed in range(12)]
    stream = Stream(asyncio.get_running_loop())
    rows: list[Sequence | None] = [
        Sequence(n, [1, 2, 3, 4], 3, plan, sampling(8), stream, slot=n, computed=3) for n, plan in enumerate(plans)
    ]
    runner.reserve(len(rows), 128)
    for sequence in rows:
        assert sequence is not None
        runner.place(sequence)
    result = runner.decode(rows, [0] * len(rows))
    assert result.logits.device == nowhere
    assert result.logits.shape == (len(rows), info.vocab_size)
    runner.close()
