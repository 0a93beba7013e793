"""Hook points inside blocks: activations equal transformers' hooks, edits a slow reference, and what is not there is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.errors import InvalidRequest, SteeringError
from steering.model.hook_points import HEADS, BlockOutput, kind_of, layer_of, point_of, points_of, residual_of
from steering.model.layout import find_layout
from steering.model.verification import verify_layout
from steering.plan.types import DoseGuard
from steering.shapes import Tensor
from steering.spec import Hook, SteeringSpec
from steering.workflows.activations import activations
from steering.workflows.readout import readout
from tests.engines import Outcome, family_engine, run, run_all, sampling
from tests.families import FAMILIES, LAYERS
from tests.plans import WORK, plan_for, vectors_for
from tests.reference import Reference

MODELS = ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "mixtral"]
"""Norms before and behind, both branches in parallel, layers of the MLP in the block itself, experts."""
PROMPT = tuple(b"The answer to that is")
INSIDE: tuple[Hook, ...] = ("attention", "mlp")


def modules(model: PreTrainedModel, kind: int) -> nn.ModuleList:
    """Returns the module of a kind of hook points in every block."""
    inner = verify_layout(model, find_layout(model)).inner
    return nn.ModuleList([inner[point_of(layer, kind)] for layer in range(LAYERS)])


def seen(model: PreTrainedModel, kind: int) -> list[Tensor]:
    """Returns what plain hooks of transformers see in one pass, (token, width) by layer."""
    found: list[Tensor] = []

    def note(_module: object, arguments: tuple[Any, ...], output: BlockOutput) -> None:
        stream = arguments[0] if kind == HEADS else residual_of(output)
        found.append(stream.reshape(-1, stream.shape[-1]).clone())

    handles = [module.register_forward_hook(note) for module in modules(model, kind)]
    with torch.no_grad():
        model(torch.tensor([PROMPT]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", MODELS)
async def test_activations_equal_those_of_transformers_hooks(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = {kind: seen(FAMILIES[family](), kind) for kind in (1, 2, HEADS)}
    async with family_engine(family, hf_byte_tokenizer) as engine:
        assert engine.info.hooks == ("residual", *INSIDE)
        layers = tuple(range(LAYERS))
        for kind, hook in enumerate(INSIDE, 1):
            found = await activations(engine, [PROMPT], layers, "all", hook=hook)
            for layer in layers:
                assert torch.allclose(found.captures[0].activations[layer], expected[kind][layer], atol=1e-4)
        width = expected[HEADS][0].shape[1] // engine.info.head_count
        for head in range(engine.info.head_count):
            found = await activations(engine, [PROMPT], layers, "all", hook="attention", head=head)
            for layer in layers:
                own = expected[HEADS][layer][:, head * width : (head + 1) * width]
                assert torch.allclose(found.captures[0].activations[layer], own, atol=1e-4)
        vectors = vectors_for(engine.info, means=True)
        (text,) = await readout(engine, [PROMPT], {"alpha": vectors["alpha"]}, "all", hook="mlp")
        entry = vectors["alpha"].layers[1]
        adds = expected[2][1] @ entry.direction / entry.scale
        assert text.readout["alpha"]["1"].scores == pytest.approx(adds.tolist(), abs=1e-4)
        assert not text.readout["alpha"]["1"].centred


@pytest.mark.parametrize("hook", INSIDE)
@pytest.mark.parametrize("family", MODELS)
async def test_edits_agree_with_the_reference(
    family: str, hook: Hook, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """All operations at once in one batch, beside a request that is not steered; with and without the dose guard."""
    model = FAMILIES[family]()
    inner = modules(model, INSIDE.index(hook) + 1)
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        cases = [[{"vector": "alpha", **work, "layers": [0, 1], "hook": hook}] for work in WORK.values()]
        bounds = [torch.inf, 0.3]
        guards = [None, DoseGuard(0.3, "clamp")]
        plans = [await plan_for(items, vectors, engine.info, guard) for guard in guards for items in cases]
        params = sampling(6, logprobs=0)
        requests = [GenerationRequest(PROMPT, params, plan) for plan in plans]
        plain, *outcomes = await run_all(engine, [GenerationRequest(PROMPT, params), *requests])
    of_cases = [(bound, items) for bound in bounds for items in cases]
    for (bound, items), outcome in zip(of_cases, outcomes, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        reference = Reference(model, inner, spec, vectors, bound, len(PROMPT))
        logprobs = reference.logits((*PROMPT, *outcome.tokens[:-1]))[len(PROMPT) - 1 :].log_softmax(-1)
        assert outcome.tokens == logprobs.argmax(-1).tolist(), (bound, items)
        assert chosen(outcome) == pytest.approx(logprobs.max(-1).values.tolist(), abs=1e-3), (bound, items)
        assert chosen(outcome) != pytest.approx(chosen(plain), abs=1e-3), "it must steer, or the agreement says nothing"
        theirs = {layer: sum(of) / len(of) for (_, layer), of in reference.doses.items()}
        assert outcome.finish.steering.doses[0] == pytest.approx(theirs, rel=1e-2, abs=1e-4), (bound, items)


def chosen(outcome: Outcome) -> list[float | None]:
    """Returns the log-probabilities of the tokens of an answer."""
    return [event.logprob for event in outcome.events if event.finish is None]


@pytest.mark.parametrize("family", MODELS)
async def test_the_ablation_of_a_head_agrees_with_zeros_before_the_projection(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES[family]()
    item: dict[str, Any] = {"operation": "ablate", "hook": "attention", "layers": [0, 2], "strength": 0.9}
    async with family_engine(family, hf_byte_tokenizer) as engine:
        items = [[{**item, "head": head} for head in heads] for heads in ([1], [0, 3])]
        plans = [await plan_for(one, {}, engine.info) for one in items]
        requests = [GenerationRequest(PROMPT, sampling(6, logprobs=0), plan) for plan in plans]
        outcomes = [await run(engine, requests[0]), *(await run_all(engine, requests))]
    for heads, outcome in zip(([1], [1], [0, 3]), outcomes, strict=True):
        handles = [modules(model, HEADS)[layer].register_forward_pre_hook(_without(heads)) for layer in (0, 2)]
        ids = torch.tensor([[*PROMPT, *outcome.tokens]])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        for handle in handles:
            handle.remove()
        assert logits.argmax(-1).tolist() == outcome.tokens
        assert chosen(outcome) == pytest.approx(logits.max(-1).values.tolist(), abs=1e-4)
        assert all(0.0 < dose < 1.0 for dose in outcome.finish.steering.doses[0].values())


def _without(heads: list[int]) -> Callable[[object, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_module: object, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        parts = arguments[0].unflatten(-1, (4, -1)).clone()
        parts[..., heads, :] *= 0.1
        return (parts.flatten(-2), *arguments[1:])

    return hook


async def test_what_a_model_does_not_have_is_refused_by_name(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """BLOOM's modules add the residual themselves, so their outputs are no hook points."""

    async def refused(items: list[dict[str, Any]], message: str) -> None:
        with pytest.raises(SteeringError, match=message):
            await plan_for(items, vectors_for(engine.info, means=True), engine.info)

    at = {"vector": "alpha", "layers": [1]}
    head = {"operation": "ablate", "hook": "attention", "layers": [1]}
    async with family_engine("bloom", hf_byte_tokenizer) as engine:
        await refused([{**at, "hook": "mlp"}], "BloomForCausalLM has no hook point 'mlp'")
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        await refused([{**head, "head": 4}], "LlamaForCausalLM has heads 0 to 3")
        await refused([{**at, "hook": "mlp", "share_dose": True}], "'share_dose' is of hook 'residual'")
        await refused(
            [{**at, "operation": "ablate", "hook": "mlp", "target": "middle"}], "class means, which vector 'alpha'"
        )
        condition = {"vector": "beta", "layer": 1, "above": 0.0, "at": "token"}
        await refused([{**at, "hook": "mlp", "when": condition}], "later than mlp of layer 1")
        for wrong in ({**head, "head": 1, "vector": "alpha"}, {**head, "head": 1, "hook": "mlp"}, {"operation": "add"}):
            with pytest.raises(ValueError, match=r"'head' takes|'vector' is required"):
                SteeringSpec.model_validate({"interventions": [wrong]})


async def test_a_condition_of_the_block_before_decides_at_the_same_token(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """And one of the same block, whose residual comes later, acts one token later."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        for layer, first in ((0, 0), (1, 1)):
            when = {"vector": "beta", "layer": layer, "above": -99.0, "at": "token"}
            item = {"vector": "alpha", "layers": [1], "hook": "attention", "strength": 3.0, "when": when}
            plan = await plan_for([{**item, "scope": {"tokens": "generated"}}], vectors, engine.info)
            outcome = await run(engine, GenerationRequest(PROMPT, sampling(4), plan))
            assert outcome.finish.steering.fired_at == (first,)


def test_points_are_in_the_order_of_the_pass() -> None:
    """Of a layer the residual, so that code which knows only layers speaks of it."""
    assert point_of(7, 0) == 7
    assert all((layer_of(point_of(5, kind)), kind_of(point_of(5, kind))) == (5, kind) for kind in range(4))


async def test_a_stream_that_stops_early_stops_behind_its_last_point(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        layers = (*points_of((2,), engine.info, "attention"), 1)
        (found,) = await engine.capture([CapturePrompt(PROMPT)], CaptureSpec(layers=layers))
        assert found.activations.shape[0] == 2
        with pytest.raises(InvalidRequest, match="do not exist"):
            await engine.capture([CapturePrompt(PROMPT)], CaptureSpec(layers=(point_of(3, 1),)))
