"""The eager path of the engine on a pretended device: no tensor of the host meets one of the device, and no pass waits for it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from steering.engine.api import Capture, CaptureSpec, FitTask, FittedDirection, NeutralText, TokenPair
from steering.engine.grammars import Grammars
from steering.engine.options import EngineLimits
from steering.engine.transformers.executor import ModelParts, PassExecutor, PreparedPass
from steering.engine.transformers.paged_cache import RowLayout
from steering.engine.transformers.request import Request
from steering.engine.transformers.training import GradientPass, fit
from steering.errors import SteeringError
from steering.injection.readings import Monitor, MonitoredAnswer, MonitorSet, Reading
from steering.model.loading import LoadedModel, _load_weights, opened
from steering.plan.types import UNSTEERED, DoseGuard, SteeringPlan
from steering.schemas.structured import Grammar
from steering.shapes import Logits
from tests.families import D_MODEL, FAMILIES
from tests.plans import plan_for, vectors_for
from tests.steering.engine.device import mps_operators, pretended
from tests.steering.engine.device.pretended import Work, device, measured
from tests.steering.engine.loop.driven import DrivenLoop, answer_of, runner_of, sequence_of

FEW_BLOCKS, MANY_BLOCKS = 12, 200
LIMITS = EngineLimits(max_running=10, prefill_tokens=64, idle_prefill_tokens=96)
PROMPT = tuple(b"The answer to that is not simple, and")
THRESHOLD = {"vector": "beta", "above": 0.1, "layer": 0, "score": "projection"}
PLANS: dict[str, list[dict[str, Any]]] = {
    "adds": [{"vector": "alpha", "layers": "all"}, {"vector": "beta", "layers": [1], "scope": {"tokens": "generated"}}],
    "relative": [{"vector": "alpha", "layers": "all", "unit": "relative", "strength": 0.1}],
    "operations": [
        {"vector": "alpha", "operation": "ablate", "layers": [1]},
        {"vector": "beta", "operation": "clamp", "high": 0.3, "layers": [1]},
        {"vector": "gamma", "operation": "rotate", "degrees": 20.0, "layers": [1]},
        {"vector": "alpha", "operation": "replace", "to": "beta", "layers": [0]},
    ],
    "condition": [{"vector": "alpha", "layers": [1], "when": {**THRESHOLD, "at": "token", "until": 0.0}}],
    "conditions": [
        {
            "vector": "alpha",
            "layers": [1],
            "scope": {"tokens": "generated"},
            "when": {"any": [{**THRESHOLD, "at": "prompt"}, {"not": {**THRESHOLD, "at": "prompt_mean"}}]},
        }
    ],
    "schedule": [{"vector": "alpha", "layers": [1], "schedule": {"kind": "linear", "tokens": 5}}],
    "hold": [{"vector": "alpha", "layers": [1], "hold": {"score": 0.4}}],
    "strength from": [{"vector": "alpha", "layers": [1], "strength_from": {"vector": "beta", "activation": "relu"}}],
    "tokens": [{"vector": "alpha", "layers": [1], "scope": {"token_ids": [100, 101]}}],
}
KINDS_BY_FAMILY = {"llama": tuple(PLANS)}
ALL_FAMILIES = ("adds", "operations", "condition", "hold")
"""Kinds of plans for the other families: what steers depends on no family."""
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.2, "seed": 1},
    {"temperature": 1.0, "top_k": 20, "min_p": 0.05, "logit_bias": {70: 2.0}, "seed": 2},
    {"temperature": 0.7, "seed": 3, "logprobs": 2},
]
REPORT = "a request that ends fetches its report"
ALLOWED_WAITS = {
    "steering/engine/transformers/sampling.py:sample": "the end of a pass that chooses no token, whose time is measured",
    "steering/engine/transformers/sampling.py:_sampled_by_torch": "the tokens of the pass",
    "steering/engine/transformers/sampling.py:_logprobs": "with their log probabilities",
    "steering/injection/readouts.py:ReadoutCollector.readouts": "and readouts",
    "steering/injection/readouts.py:MonitorScores.by_row": "and the scores of monitors",
    "steering/injection/injector.py:PassDoses.collect": "sums of prompt blocks, for requests that share them, after the pass",
    "steering/injection/injector.py:Injector.release": REPORT,
    "steering/injection/rows.py:Doses.add": REPORT,
    "steering/injection/conditions.py:held_readouts": REPORT,
    "steering/engine/transformers/runner.py:_keep_logits": "logits of a capture, after the pass",
    "steering/engine/captures.py:result": "a text that was read",
    "steering/engine/transformers/unembedding.py:Unembedding.embed": "input embeddings of a capture",
}
"""Where the host waits for the device, and for what."""
TRAINING_WAITS = {"steering/engine/transformers/training.py:GradientPass._measured": "the result of a pass"}


@pytest.fixture(autouse=True)
def _generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", pretended.host_generator)


def loaded_on(family: str, tokenizer: PreTrainedTokenizerFast, *, on_device: bool) -> LoadedModel:
    """Opens a tiny model on the CPU or the pretended device."""
    model = FAMILIES[family]()
    return opened(model.to(device()) if on_device else model, tokenizer, name="tiny")


async def plans_of(loaded: LoadedModel, names: Collection[str]) -> dict[str, SteeringPlan]:
    """Returns plans of some kinds, and one with a dose guard."""
    vectors = vectors_for(loaded.info, means=True)
    plans = {name: await plan_for(PLANS[name], vectors, loaded.info) for name in names}
    guarded: list[dict[str, Any]] = [
        {"vector": "alpha", "layers": "all", "strength": 3.0},
        {"vector": "beta", "operation": "ablate", "layers": [1]},
    ]
    plans["guard"] = await plan_for(guarded, vectors, loaded.info, DoseGuard(bound=0.1, action="clamp"))
    return plans


def requests_of(loaded: LoadedModel, plans: dict[str, SteeringPlan]) -> list[Request]:
    """Returns greedy answers under every plan, sampled answers, one under a grammar, and texts to read."""
    reading = Reading("pole", 1, torch.nn.functional.normalize(torch.ones(D_MODEL), dim=0), 1.0)
    monitors = MonitorSet(
        [Monitor("m", "v", "s", reading, True, 0.0), Monitor("p", "v", "s", reading, True, 0.0, at="prompt")]
    )
    greedy = [
        sequence_of(loaded, PROMPT[: 25 + number], 5, plan=plan, temperature=0.0, logprobs=2, frequency_penalty=0.3)
        for number, plan in enumerate([UNSTEERED, *plans.values(), plans["adds"]])
    ]
    for row in greedy[::2]:
        row.readings, row.monitors, row.monitored = (reading,), monitors, MonitoredAnswer(monitors, "r")
    sampled = [sequence_of(loaded, PROMPT[:20], 4, plan=plans["adds"], **settings) for settings in SAMPLED]
    digits = asyncio.run(Grammars(loaded.tokenizer).matcher(Grammar("regex", "[0-7]{30}")))
    matched = [
        sequence_of(loaded, PROMPT[:9], 4, temperature=0.0),
        sequence_of(loaded, PROMPT[:9], 4, temperature=1.0, top_k=9),
    ]
    for row in matched:
        row.matcher = digits.copy()
    spec = CaptureSpec((0, 2), "all", logits=True, embeddings=True)
    texts = [
        sequence_of(loaded, PROMPT, capture=spec, plan=plans["operations"]),
        sequence_of(loaded, PROMPT[:25], capture=CaptureSpec((1,), "mean"), plan=plans["adds"]),
        sequence_of(loaded, PROMPT[:12], capture=CaptureSpec((1,), "last")),
    ]
    return [*greedy, *sampled, *matched, *texts]


def answer(driven: DrivenLoop, loaded: LoadedModel, requests: list[Request]) -> None:
    """Runs requests to their ends, all of which come at once, and then one whose prompt is in the cache."""
    driven.turn(requests)
    driven.finish()
    for _ in range(2):
        driven.turn([sequence_of(loaded, PROMPT, 2, plan=requests[1].plan)])
        driven.finish()
    driven.runner.close()


def assert_no_waits(work: Work, allowed: dict[str, str] = ALLOWED_WAITS) -> None:
    """The host has waited where it may."""
    unexpected = {place: count for place, count in work.waits.items() if place.partition(".<locals>")[0] not in allowed}
    assert not unexpected


@pytest.mark.parametrize(
    ("family", "fused"),
    [
        ("llama", False),
        ("llama", True),
        *((family, False) for family in ("gemma2", "gemma3", "gpt2", "bloom", "mixtral")),
    ],
)
def test_the_whole_eager_path_stays_on_the_device(
    family: str, fused: bool, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """fused: edits are the operator `steering::edit` there, as on a GPU with Triton."""

    def edit_kernel(where: torch.device, d_model: int, dtype: torch.dtype) -> bool:
        assert (d_model, dtype) == (loaded.info.d_model, torch.float32)
        return where == device()

    found = []
    for on_device in (False, True):
        loaded = loaded_on(family, hf_byte_tokenizer, on_device=on_device)
        requests = requests_of(loaded, asyncio.run(plans_of(loaded, KINDS_BY_FAMILY.get(family, ALL_FAMILIES))))
        runner = runner_of(loaded, FEW_BLOCKS, edit_kernel=edit_kernel if fused else None)
        driven = DrivenLoop(runner, loaded, LIMITS)
        with measured() as work:
            answer(driven, loaded, requests)
        assert driven.scheduler.preemptions
        assert driven.scheduler.cached_tokens
        ends = [answer_of(request) for request in requests]
        assert not [end for end in ends if isinstance(end, SteeringError)]
        found.append([(request.ids, end) for request, end in zip(requests, ends, strict=True)])
    assert driven.runner.cache.keys[0].device == device()
    assert_no_waits(work)
    assert ("edit.default" in work.operators) == fused
    assert fused or not work.operators - mps_operators.listed(), "Apple's GPUs lack these"
    for request, (ids, here), (ids_there, there) in zip(requests, *found, strict=True):
        if isinstance(here, Capture):
            assert isinstance(there, Capture)
            torch.testing.assert_close(here.activations, there.activations, rtol=1e-4, atol=1e-4)
        elif request.sampling.temperature == 0.0:  # noise is another one
            assert ids == ids_there


def fitted(task: FitTask, passes: GradientPass) -> FittedDirection:
    """Runs all pieces of a fit."""
    pieces = fit(task, passes, D_MODEL)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            found: FittedDirection = end.value
            return found


def test_training_stays_on_the_device(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = tuple(
        TokenPair(tuple(a), tuple(b), 4) for a, b in ((b"The warm sea", b"The cold sea"), (b"It is good", b"It is bad"))
    )
    task = FitTask(pairs, layer=1, amount=4.0, steps=2, batch=2, seed=3, neutral=(NeutralText(tuple(b"A door"), 2),))
    directions = []
    for on_device in (False, True):
        loaded = loaded_on("llama", hf_byte_tokenizer, on_device=on_device)
        runner = runner_of(loaded, MANY_BLOCKS)
        # autograd has a thread for each accelerator that it knew at its first use; this one may have come later
        with measured() as work, torch.autograd.set_multithreading_enabled(False):
            directions.append(fitted(task, runner.gradients).direction)
        runner.close()
    assert work.launches
    assert not work.operators - mps_operators.listed(), "Apple's GPUs lack these"
    assert_no_waits(work, TRAINING_WAITS)
    torch.testing.assert_close(*directions, rtol=1e-3, atol=1e-3)


def test_weights_are_loaded_onto_the_device(tmp_path: Path) -> None:
    FAMILIES["llama"]().save_pretrained(tmp_path)
    options = {"device_map": {"": device()}}
    model, _ = _load_weights(tmp_path, AutoModelForCausalLM, torch.bfloat16, options, cast=False)
    assert {one.device for one in model.parameters()} == {device()}
    assert {one.device for one in model.buffers()} == {device()}


# ---- planted defects ----


class WaitingExecutor(PassExecutor):
    """Looks at a number of the device in every pass."""

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor."""
        if int(prepared.batch.positions.max()) < 0:
            raise AssertionError
        return super().run(prepared)


class MaskingExecutor(PassExecutor):
    """Picks tokens by a mask, whose length the host must know."""

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor."""
        _ = prepared.batch.token_ids[prepared.batch.positions >= 0]
        return super().run(prepared)


class UploadingExecutor(PassExecutor):
    """Copies numbers to the device as torch does by default, which waits for all before them."""

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor."""
        torch.tensor([0], device=prepared.keep.device)
        return super().run(prepared)


class HostIndexLayout(RowLayout):
    """Writes keys at places that are on the host."""

    def write_keys(self, states: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """See RowLayout."""
        super().write_keys(states, slots.cpu(), tokens)


def plant_host_table(driven: DrivenLoop, _loaded: LoadedModel) -> None:
    """Moves the vectors of edits to the host."""
    slots = driven.runner.injector.slots
    slots.vectors = slots.vectors.cpu()


def plant_wrong_index(driven: DrivenLoop, _loaded: LoadedModel) -> None:
    """Has the cache write at an index that is on the host."""
    driven.runner.cache.layout = HostIndexLayout()


@pytest.fixture(scope="module")
def llama(hf_byte_tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return loaded_on("llama", hf_byte_tokenizer, on_device=True)


@pytest.fixture(scope="module")
def adds(llama: LoadedModel) -> SteeringPlan:
    return asyncio.run(plan_for(PLANS["adds"], vectors_for(llama.info), llama.info))


@pytest.mark.parametrize(
    ("plant", "operation"), [(plant_host_table, "index_select"), (plant_wrong_index, "index_copy_")]
)
def test_a_host_tensor_among_those_of_the_device_fails(
    plant: Callable[[DrivenLoop, LoadedModel], None], operation: str, llama: LoadedModel, adds: SteeringPlan
) -> None:
    driven = DrivenLoop(runner_of(llama, MANY_BLOCKS), llama, LIMITS)
    row = sequence_of(llama, PROMPT, 2, plan=adds)
    driven.loop.submit([row])
    driven.loop.collect()
    (admitted,) = driven.scheduler.admit()
    driven.runner.injector.admit(admitted)
    plant(driven, llama)
    with pytest.raises(RuntimeError, match=rf"{operation}: expected all tensors to be on the pretended device"):
        driven.runner.run(driven.scheduler.schedule())
    driven.runner.close()


@pytest.mark.parametrize("executor", [WaitingExecutor, MaskingExecutor, UploadingExecutor])
def test_a_wait_inside_a_pass_fails(executor: type[PassExecutor], llama: LoadedModel) -> None:
    driven = DrivenLoop(runner_of(llama, MANY_BLOCKS), llama, LIMITS)
    runner = driven.runner
    runner.executor.close()
    runner.executor = executor(
        ModelParts(llama.model, llama.layout, runner._hooks, runner.cache, runner.injector.slots)
    )
    with measured() as work:
        driven.turn([sequence_of(llama, PROMPT, 1)])
    runner.close()
    with pytest.raises(AssertionError, match=r"ModelRunner\._run"):
        assert_no_waits(work)


def test_the_device_is_as_strict_as_real_ones() -> None:
    there, here = torch.ones(2, device=device()), torch.ones(2)
    assert torch.equal((there + 1.0).cpu(), here + 1.0)
    assert torch.equal((there + torch.tensor(2.0)).cpu(), here + 2.0), "a number of the host is allowed"
    mixed: list[Callable[[], object]] = [
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: there.index_select(0, torch.tensor([0])),
    ]
    for refused in mixed:
        with pytest.raises(RuntimeError, match="expected all tensors to be on the pretended device"):
            refused()
    with pytest.raises(TypeError, match="float64"):
        there.double()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    waits: list[Callable[[], object]] = [
        there.tolist,
        there.sum().item,
        there.cpu,
        there.nonzero,
        lambda: bool(there.all()),
        lambda: there[there > 0],
        lambda: there[torch.tensor([0])],
        lambda: torch.ones(2).to(device()),
    ]
    for waiting in waits:
        with measured() as work:
            waiting()
        assert sum(work.waits.values()) == 1
    with measured() as work:
        there.mul(2.0).view(1, 2).t()
    assert work.launches == Counter({"mul": 1})
