"""The self-test at the start: an engine that does not steer must not serve."""

import torch

from steering.concepts.loader import load_neutral
from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.vllm.engine import VllmEngine
from steering.errors import ModelLoadFailed
from steering.plan.types import LINEAR, Edits, Intervention, SteeringPlan
from steering.spec import InterventionSpec

LARGE = 100.0
"""Typical norms that the add of the test is long: the residual is then little else."""
TOKENS = 4


async def check_steering(engine: VllmEngine) -> None:
    """Raises ModelLoadFailed where a layer has no hook that runs, where a large add does not change the tokens, or where
    a plan of zeros does. To be called once the typical norms are measured, which reads every layer."""
    await _check_hooks(engine)
    layer = engine.info.layer_count // 2
    direction = torch.randn(engine.info.d_model, generator=torch.Generator().manual_seed(0))
    change = LARGE * engine.info.typical_norms[layer] * direction / direction.norm()
    plain = await _tokens(engine, SteeringPlan())
    zero = await _tokens(engine, _plan(layer, torch.zeros_like(change), "self-test zero"))
    steered = await _tokens(engine, _plan(layer, change, "self-test add"))
    if zero != plain:
        raise ModelLoadFailed("the self-test failed: a plan of zeros changes the tokens; the engine does not serve")
    if steered == plain:
        raise ModelLoadFailed("the self-test failed: a large add changes nothing; the engine does not serve unsteered")


async def check_hashes(engine: VllmEngine) -> bool:
    """Returns whether cached blocks of a steered prompt are kept from a plain request, and plain ones are shared.

    During the test their hashes alone keep them apart. False too where the context is too short to tell, or nothing is
    shared at all.
    """
    length = 2 * engine.client.block_size + 1
    if length + 1 > engine.info.context_length:
        return False
    text = engine.tokenizer.encode(load_neutral()[0])
    prompt = (text * (length // len(text) + 1))[:length]
    change = torch.full((engine.info.d_model,), engine.info.typical_norms[0])
    engine.client.hashes_know_steering = True
    try:
        await _cached(engine, prompt, _plan(0, change, "self-test hashes", reusable=True))
        first = await _cached(engine, prompt, SteeringPlan())
        second = await _cached(engine, prompt, SteeringPlan())
    finally:
        engine.client.hashes_know_steering = False
    return first == 0 < second


async def _cached(engine: VllmEngine, prompt: tuple[int, ...], plan: SteeringPlan) -> int:
    request = GenerationRequest(
        prompt, SamplingParams(max_tokens=1, ignore_eos=True), plan, priority=1, cache_salt="self-test"
    )
    events = [event async for event in engine.generate(request)]
    assert events[-1].finish is not None
    return events[-1].finish.cached_tokens


async def _check_hooks(engine: VllmEngine) -> None:
    reached = {
        int(layer) for found in await engine.call_workers("steering_calls") for layer, calls in found.items() if calls
    }
    missing = sorted(set(range(engine.info.layer_count)) - reached)
    if missing:
        raise ModelLoadFailed(f"the hooks of layers {missing} never ran: the engine does not serve unsteered")


def _plan(layer: int, change: torch.Tensor, fingerprint: str, *, reusable: bool = False) -> SteeringPlan:
    """Adds a change at a layer to every residual."""
    spec = InterventionSpec(vector="self-test", layers=(layer,))
    numbers = torch.tensor([[1.0, 0.0, 1.0]])
    edits = Edits(fingerprint, fingerprint, (0,), change[None], torch.zeros_like(change)[None], numbers, (LINEAR,))
    return SteeringPlan(
        interventions=(Intervention(spec, "", "", (layer,)),),
        layers={layer: (edits,)},
        fingerprint=fingerprint,
        prompt_fingerprint=fingerprint,
        reusable=reusable,
    )


async def _tokens(engine: VllmEngine, plan: SteeringPlan) -> list[int]:
    prompt = engine.tokenizer.encode(load_neutral()[0])[: engine.info.context_length - TOKENS]
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    request = GenerationRequest(prompt, sampling, plan, priority=1)
    return [event.token_id async for event in engine.generate(request) if event.finish is None]
