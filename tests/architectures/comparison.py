"""Compares a tiny model of a class in the engine with transformers, plain and with a hook."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from steering.engine.api import GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.factory import self_tested
from steering.errors import UnsupportedModel
from steering.model.hook_points import BlockOutput, points_of, residual_of, with_residual
from steering.model.layout import find_layout
from steering.model.loading import LoadedModel, opened
from steering.spec import Hook
from steering.workflows.activations import activations
from tests.architectures.configurations import tiny
from tests.byte_tokenizer import build_byte_tokenizer
from tests.engines import Outcome, run_all, sampling
from tests.plans import plan_for, vectors_for

PROMPTS = (
    tuple(b"Once upon a time there was a king who wanted more than sixteen"),
    tuple(b"Hm"),
    tuple(b"What would you say of the weather?"),
)
TOKENS = 8
LAYER = 1
TOLERANCE = 5e-3
"""In nats, of the log probability of every token."""
Result = Literal["equal", "refused", "not tried", "WRONG"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row of the table. attention, hooks: where the class is served."""

    name: str
    result: Result
    attention: str = ""
    hooks: str = ""
    reason: str = ""


@cache
def tokenizer() -> Any:
    return build_byte_tokenizer()


def compared(name: str) -> Comparison:
    """Tries one class."""
    try:
        model, twin = tiny(name), tiny(name)
        logprobs(twin, PROMPTS[0], 1)
    except Exception as error:
        return Comparison(name, "not tried", reason=f"{type(error).__name__}: {error}")
    try:
        loaded = self_tested(opened(model, tokenizer(), name="tiny"))
    except UnsupportedModel as error:
        return Comparison(name, "refused", reason=error.message)
    except Exception as error:
        return Comparison(name, "WRONG", reason=f"{type(error).__name__}: {error}")
    try:
        wrong = asyncio.run(differences(loaded, twin))
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    layout = loaded.layout
    hooks = ", ".join((*layout.hooks[1:], *(["heads"] if layout.head_count else [])))
    return Comparison(name, "WRONG" if wrong else "equal", layout.attention, hooks, wrong)


async def differences(loaded: LoadedModel, twin: torch.nn.Module) -> str:
    """Answers the prompts together in an engine, plain and with an addition. Returns what differs from the twin, or nothing."""
    engine = TransformersEngine(loaded, EngineLimits(cache_bytes=4 << 20, prefill_tokens=32, idle_prefill_tokens=32))
    try:
        vectors = vectors_for(engine.info)
        item = {"vector": "alpha", "layers": [LAYER], "strength": 2.0, "scope": {"tokens": "all"}}
        plan = await plan_for([item], vectors, engine.info)
        params = sampling(TOKENS, logprobs=0)
        plain = await run_all(engine, [GenerationRequest(prompt, params) for prompt in PROMPTS])
        steered = await run_all(engine, [GenerationRequest(prompt, params, plan) for prompt in PROMPTS])
        inside = {
            hook: (await activations(engine, [PROMPTS[0]], (LAYER,), "all", hook=hook)).captures[0].activations[0]
            for hook in engine.info.hooks[1:]
        }
    finally:
        await engine.close()
    direction = vectors["alpha"].layers[LAYER]
    change = 2.0 * direction.scale * direction.direction
    block = find_layout(twin).blocks[LAYER]

    def add(_module: object, _arguments: object, output: BlockOutput) -> BlockOutput:
        return with_residual(output, residual_of(output) + change)

    found = worst(twin, plain)
    if found > TOLERANCE:
        return f"plain answers differ by {found:.3g} nats"
    for hook, ours in inside.items():
        theirs = output_of(twin, _same_module(loaded, twin, hook))
        if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max())):
            return f"the outputs at hook point {hook} differ by {float((ours - theirs).abs().max()):.3g}"
    handle = block.register_forward_hook(add)
    try:
        found = worst(twin, steered)
    finally:
        handle.remove()
    return f"steered answers differ by {found:.3g} nats" if found > TOLERANCE else ""


def _same_module(loaded: LoadedModel, twin: torch.nn.Module, hook: Hook) -> torch.nn.Module:
    """Returns the module of the twin that has the name of a hook point's module in the loaded model."""
    (point,) = points_of((LAYER,), loaded.info, hook)
    names = {module: name for name, module in loaded.model.named_modules()}
    return twin.get_submodule(names[loaded.layout.inner[point]])


def output_of(twin: torch.nn.Module, module: torch.nn.Module) -> torch.Tensor:
    """Returns what a plain hook of transformers sees a module return, (token, d_model)."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _arguments, output: seen.append(residual_of(output).clone()))
    try:
        logprobs(twin, PROMPTS[0], 1)
    finally:
        handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def worst(twin: torch.nn.Module, outcomes: Sequence[Outcome]) -> float:
    """Returns the largest difference of a log probability, and of the greedy choice."""
    found = 0.0
    for prompt, outcome in zip(PROMPTS, outcomes, strict=True):
        own = logprobs(twin, (*prompt, *outcome.tokens), TOKENS + 1)[:-1]
        chosen = own.gather(1, torch.tensor(outcome.tokens)[:, None])[:, 0]
        ours = torch.tensor([event.logprob for event in outcome.events if event.finish is None])
        found = max(found, float((chosen - ours).abs().max()), float((own.max(1).values - chosen).max()))
    return found


def logprobs(model: Any, ids: Sequence[int], last: int) -> torch.Tensor:
    """Returns log probabilities (position, vocab) at the last positions, by one forward pass of transformers."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -last:]
    return logits.float().log_softmax(-1)
