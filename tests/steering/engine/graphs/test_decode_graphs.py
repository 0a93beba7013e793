"""Decode passes that are captured and replayed give what eager ones give, for every kind of plan, number of rows and place in the cache."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest, TokenEvent
from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.decode_graphs import MOST_BYTES, CaptureGraph, Compute, CudaGraphs, GraphExecutor
from steering.engine.transformers.request import Request
from steering.engine.transformers.runner import CUDA_SHARE, ModelRunner, cuda_blocks
from steering.injection.readings import Reading
from steering.model.info import ModelInfo
from steering.model.loading import LoadedModel, opened
from steering.plan.types import DoseGuard
from steering.shapes import Logits
from tests.engines import random_requests, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.steering.engine.graphs.recorder import Driver, GraphRecorder, computing
from tests.steering.engine.loop.driven import DrivenLoop, finish_of, items_of, runner_of, sequence_of, tokens_of

PROMPTS = [tuple(b"Once upon a time"), tuple(b"Hm"), tuple(b"A longer prompt than the sliding window of the model is")]
UNCONDITIONAL: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "strength": 0.5, "layers": "all"}],
    [{"vector": "alpha", "layers": "all", "scope": {"token_ids": [*range(97, 110)]}}],
    [{"vector": "alpha", "strength": 0.5, "layers": "all"}, {"vector": "beta", "operation": "ablate", "layers": [1]}],
    [{"vector": "gamma", "operation": "rotate", "degrees": 25.0, "layers": [0, 2]}],
    [{"vector": "delta", "operation": "clamp", "low": -0.1, "high": 0.3, "layers": "all", "unit": "relative"}],
    [{"vector": "beta", "strength": 1.0, "layers": "all", "schedule": {"kind": "linear", "tokens": 6, "to": 0.2}}],
    [{"vector": "alpha", "strength": 1.0, "hold": {"score": 0.4, "integral_gain": 0.4, "proportional_gain": 0.1},
      "unit": "scale", "layers": [1], "scope": {"tokens": "generated"}}],
]  # fmt: skip


class Runners:
    """An eager runner and one whose decode passes are captured, over the same model. preemptions: of the last answers."""

    def __init__(self, family: str, tokenizer: PreTrainedTokenizerFast, capture: CaptureGraph, blocks: int) -> None:
        self._loaded = [opened(FAMILIES[family](), tokenizer, name="tiny") for _ in range(2)]
        self.eager = runner_of(self._loaded[0], blocks)
        self.graphs = runner_of(self._loaded[1], blocks, capture)
        assert isinstance(self.graphs.executor, GraphExecutor)
        self.graphs.executor.worth = 1
        self.preemptions = self.cached_tokens = 0

    @property
    def info(self) -> ModelInfo:
        """Facts of the model."""
        return self._loaded[0].info

    def answered(self, requests: Sequence[GenerationRequest], *, share: bool = False) -> list[Request]:
        """Answers requests together with captured passes, and asserts that eager ones give the same."""
        expected = self._run(self.eager, self._loaded[0], requests, share=share)
        found = self._run(self.graphs, self._loaded[1], requests, share=share)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        return found

    def _run(
        self, runner: ModelRunner, loaded: LoadedModel, requests: Sequence[GenerationRequest], *, share: bool
    ) -> list[Request]:
        loop = DrivenLoop(runner, loaded, EngineLimits(share_prefixes=share))
        rows = []
        for request in requests:
            tokens = tuple(token for token in request.prompt if isinstance(token, int))
            asked = request.sampling
            settings: dict[str, Any] = {
                "temperature": asked.temperature,
                "seed": asked.seed,
                "logprobs": asked.logprobs,
            }
            rows.append(sequence_of(loaded, tokens, asked.max_tokens, plan=request.plan, **settings))
            rows[-1].readings = request.readings
        loop.turn(rows)
        loop.finish()
        loop.assert_idle()
        self.preemptions, self.cached_tokens = loop.scheduler.preemptions, loop.scheduler.cached_tokens
        return rows


@contextmanager
def runners(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    capture: CaptureGraph,
    blocks: int = 200,
    executor: str = "eager+graphs",
) -> Iterator[Runners]:
    """executor: the name of what runs passes in the end."""
    both = Runners(family, tokenizer, capture, blocks)
    try:
        yield both
        assert both.graphs.executor.name == executor
    finally:
        both.eager.close()
        both.graphs.close()


def assert_same(one: Request, other: Request) -> None:
    """Tokens, log probabilities, readouts, and what steering was measured to do."""
    assert tokens_of(one) == tokens_of(other)
    for event, its in zip(items_of(one), items_of(other), strict=True):
        assert isinstance(event, TokenEvent)
        assert isinstance(its, TokenEvent)
        assert event.logprob == (None if its.logprob is None else pytest.approx(its.logprob, abs=1e-3))
        assert event.readout == pytest.approx(its.readout, abs=1e-3)
    ours, theirs = finish_of(one).steering, finish_of(other).steering
    assert (ours.fired_at, ours.tokens, ours.clamped) == (theirs.fired_at, theirs.tokens, theirs.clamped)
    assert ours.total == pytest.approx(theirs.total, rel=1e-3)
    for dose, expected in zip(ours.doses, theirs.doses, strict=True):
        assert dose == pytest.approx(expected, rel=1e-3, abs=1e-6)
    for held, its_held in zip(ours.held, theirs.held, strict=True):
        for layer, its_readout in its_held.items():
            assert held[layer].score == pytest.approx(its_readout.score, rel=1e-3, abs=1e-5)
            assert held[layer].strength == pytest.approx(its_readout.strength, rel=1e-3, abs=1e-5)


async def unconditional(info: ModelInfo, count: int, tokens: int = 8) -> list[GenerationRequest]:
    """Requests of which every third is not steered, the others each in another way."""
    vectors = vectors_for(info)
    return [
        GenerationRequest(
            PROMPTS[number % 2],
            sampling(tokens, temperature=number % 2 * 0.7, seed=number, logprobs=0),
            await plan_for(UNCONDITIONAL[number % len(UNCONDITIONAL)] if number % 3 else [], vectors, info),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("family", "fused"), [("llama", False), ("gemma2", True)])
async def test_random_plans_of_every_kind(family: str, fused: bool, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """gemma2 has windows and a bound on scores. Passes with a condition that is tested at each token stay eager. fused: edits are one
    operation of the graph."""
    recorder = GraphRecorder()
    with runners(family, hf_byte_tokenizer, recorder) as both:
        both.graphs.injector.slots.fused = fused
        requests = await random_requests(both.info, PROMPTS, 6, 40)
        tested = [request for request in requests if any(one.at == "token" for one in request.plan.thresholds)]
        others = [request for request in requests if request not in tested]
        assert any(request.plan.thresholds for request in others)
        for start in range(0, 27, 9):
            before = recorder.replayed
            both.answered(others[start : start + 9])
            assert recorder.replayed > before
        before = recorder.replayed
        both.answered(tested)
        assert recorder.replayed == before


async def test_numbers_of_rows_around_those_of_graphs(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Padding rows change no other, and leave the block that belongs to nobody as it is: all tables of blocks are padded with it."""
    recorder = GraphRecorder()
    with runners("llama", hf_byte_tokenizer, recorder) as both:
        requests = await unconditional(both.info, 17)
        both.answered(requests)
        for count in (1, 2, 3, 5, 8, 9, 16):
            before = recorder.replayed
            both.answered(requests[:count])
            assert recorder.replayed > before
        executor, cache = both.graphs.executor, both.graphs.cache
        assert isinstance(executor, GraphExecutor)
        assert {shape.rows for shape in executor._graphs} <= {1, 2, 4, 8, 16, 24}
        assert not any(states[:, :BLOCK].any() for states in (*cache.keys, *cache.values))


@pytest.mark.parametrize("fused", [False, True])
async def test_a_dose_bound_holds_in_every_replay(fused: bool, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    recorder = GraphRecorder()
    with runners("llama", hf_byte_tokenizer, recorder) as both:
        both.graphs.injector.slots.fused = fused
        vectors = vectors_for(both.info, scale=20.0)
        items = [[{"vector": name, "layers": "all"}] for name in ("alpha", "beta")]
        plans = [await plan_for(one, vectors, both.info, DoseGuard(0.3, "clamp")) for one in items]
        plans.append(await plan_for(items[0], vectors, both.info))
        found = both.answered([GenerationRequest(PROMPTS[0], sampling(8), plan) for plan in plans])
    assert recorder.replayed
    reports = [finish_of(one).steering for one in found]
    assert reports[0].clamped > 0
    assert reports[0].total <= 0.3001 < reports[2].total


async def test_readouts_are_those_of_the_residual_that_a_replay_leaves(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    recorder = GraphRecorder()
    with runners("llama", hf_byte_tokenizer, recorder) as both:
        vectors = vectors_for(both.info)
        entry = vectors["alpha"].layers[1]
        plan = await plan_for(UNCONDITIONAL[2], vectors, both.info)
        readings = (Reading("alpha", 1, entry.direction, entry.scale), Reading("last", 2, entry.direction, 1.0))
        requests = [GenerationRequest(prompt, sampling(8), plan, readings=readings) for prompt in PROMPTS]
        found = both.answered(requests)
    assert recorder.replayed
    assert all(isinstance(event, TokenEvent) and len(event.readout) == 2 for event in items_of(found[0])[:-1])


async def test_answers_that_are_preempted_and_prompts_that_are_shared(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """The blocks of a row are others than before, and some belong to several rows."""
    recorder = GraphRecorder()
    with runners("llama", hf_byte_tokenizer, recorder, blocks=9) as both:
        plan = await plan_for(UNCONDITIONAL[2], vectors_for(both.info), both.info)
        settings = [sampling(36, temperature=0.9, seed=n) for n in range(3)]
        both.answered([GenerationRequest((*PROMPTS[2], n), settings[n], plan) for n in range(3)], share=True)
        assert both.preemptions > 0
        assert both.cached_tokens > 0
    assert recorder.replayed > 30


async def test_graphs_are_dropped_when_the_tables_of_steering_move(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """The recorder keeps no table: to replay over one that is gone would fail."""
    recorder, captured = GraphRecorder(), []
    with runners("llama", hf_byte_tokenizer, recorder) as both:
        vectors = vectors_for(both.info)
        plans = [
            await plan_for([{"vector": name, "strength": 0.3, "layers": "all"} for name in names], vectors, both.info)
            for names in (["alpha"], [*vectors] * 3)
        ]
        small, large = (GenerationRequest(PROMPTS[0], sampling(6), plan) for plan in plans)
        for request in (small, small, large, small, large):
            both.answered([request])
            captured.append(recorder.captured)
    assert captured == [1, 1, 2, 3, 3]


def refusing(_compute: Compute) -> Compute:
    """Raises as CUDA does at the first thing that cannot be captured."""
    raise RuntimeError("operation not permitted when stream is capturing")


def wrong(compute: Compute) -> Compute:
    """Replays give other numbers."""

    def replay() -> Logits:
        return torch.zeros_like(compute())

    return replay


@pytest.mark.parametrize(("capture", "reason"), [(refusing, "not permitted"), (wrong, "differs from the eager pass")])
async def test_passes_stay_eager_where_a_graph_cannot_be_had_or_is_wrong(
    capture: CaptureGraph, reason: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    with capture_logs() as logs, runners("llama", hf_byte_tokenizer, capture, executor="eager") as both:
        both.answered(await unconditional(both.info, 3))
    (refused,) = [line for line in logs if line["event"] == "decode_graphs_refused"]
    assert reason in refused["reason"]


async def test_a_capture_that_finds_no_memory_is_tried_again(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    recorder, short = GraphRecorder(), [True, True]

    def capture(compute: Compute) -> Compute:
        if short and short.pop():
            raise torch.OutOfMemoryError("a long prompt beside it has all memory")
        return recorder(compute)

    with capture_logs() as logs, runners("llama", hf_byte_tokenizer, capture) as both:
        both.answered(await unconditional(both.info, 3, tokens=12))
    assert not short
    assert recorder.replayed > 0
    assert not [line for line in logs if line["event"] == "decode_graphs_refused"]


def test_memory_is_kept_for_graphs_where_there_are_any() -> None:
    one, other = torch.device("cuda:0"), torch.device("cuda:1")
    graphs, eager = EngineLimits(), EngineLimits(cuda_graphs=False)
    block, left = 1 << 20, 1 << 33
    kept = cuda_blocks({one: left}, {one: block}, eager) - cuda_blocks({one: left}, {one: block}, graphs)
    assert kept == pytest.approx(2 * MOST_BYTES * CUDA_SHARE / block, abs=1)
    spread = {one: left, other: left // 2}, {one: block, other: block}
    assert cuda_blocks(*spread, graphs) == cuda_blocks(*spread, eager) == int(left // 2 * CUDA_SHARE) // block


def test_the_recorder_refuses_what_a_device_would_wait_for() -> None:
    """And sees memory that nobody keeps."""
    recorder, numbers = GraphRecorder(), torch.arange(4.0)
    for waiting in (
        lambda: numbers * numbers.sum().item(),
        lambda: numbers[numbers > 1.0],
        lambda: numbers[torch.tensor([0, 1])],
        lambda: torch.full((2,), numbers.tolist()[0]),
    ):
        with pytest.raises(RuntimeError, match="not permitted"):
            recorder(waiting)
    table = torch.arange(3.0)
    replay = recorder(lambda: table + 1.0)
    table[0] = 5.0
    assert replay().tolist() == [6.0, 2.0, 3.0]
    table = torch.arange(3.0)
    with pytest.raises(AssertionError, match="nobody has kept"):
        replay()


def test_a_capture_has_a_stream_of_its_own_after_one_run_there() -> None:
    driver = Driver()
    graphs = CudaGraphs(torch.device("cuda:0"), driver)
    first = graphs(computing(driver))
    assert driver.calls == [
        "capture waits for engine",
        "compute on capture",
        "engine waits for capture",
        "capture in pool 1",
        "compute on capture",
    ]
    assert first() is first()
    assert driver.calls[-2:] == ["replay", "replay"]
    second = graphs(computing(driver))
    assert driver.calls.count("capture in pool 1") == 2
    del first, second
    gc.collect()
    graphs(computing(driver))
    assert driver.calls.count("capture in pool 2") == 1


def test_a_capture_that_fails_leaves_the_stream_of_the_engine() -> None:
    driver = Driver(fails=True)
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraphs(torch.device("cuda:0"), driver)(computing(driver))
    assert driver.current == "engine"
