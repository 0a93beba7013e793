"""Checks that every engine makes, whichever way a request came."""

from math import inf, isfinite

from steering.engine.api import CapturePrompt, SamplingParams
from steering.errors import InvalidRequest, UnsupportedParameter
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan


def check_sampling(params: SamplingParams, info: ModelInfo) -> None:
    """Raises InvalidRequest for a parameter out of its range; the message names the field and what is allowed."""
    _check("max_tokens", params.max_tokens, params.max_tokens >= 1, "at least 1")
    _check("temperature", params.temperature, 0.0 <= params.temperature < inf, "0 or more")
    _check("top_p", params.top_p, 0.0 < params.top_p <= 1.0, "above 0 and at most 1")
    _check("top_k", params.top_k, params.top_k >= 0, "0 (off) or more")
    _check("min_p", params.min_p, 0.0 <= params.min_p <= 1.0, "from 0 to 1")
    _check("repetition_penalty", params.repetition_penalty, 0.0 < params.repetition_penalty < inf, "above 0")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(params, name)
        _check(name, value, isfinite(value), "finite")
    if params.logprobs is not None:
        _check("logprobs", params.logprobs, 0 <= params.logprobs <= info.vocab_size, f"from 0 to {info.vocab_size}")
    for token, bias in params.logit_bias.items():
        _check("logit_bias", token, 0 <= token < info.vocab_size, f"for token ids from 0 to {info.vocab_size - 1}")
        _check("logit_bias", bias, isfinite(bias), "finite")
    if any(not stop for stop in params.stop):
        raise InvalidRequest("stop: a stop string must not be empty", param="stop")


def check_capture(prompt: CapturePrompt, length: int) -> None:
    """Raises InvalidRequest for a prompt_length or a first position outside a text of that many tokens."""
    if prompt.prompt_length is not None and not 1 <= prompt.prompt_length <= length:
        raise InvalidRequest(
            f"prompt_length {prompt.prompt_length} lies outside the text of {length} tokens", param="prompt_length"
        )
    if not 0 <= prompt.first < length:
        raise InvalidRequest(f"first {prompt.first} lies outside the text of {length} tokens", param="first")


def refuse_token_scopes(plan: SteeringPlan, engine: str) -> None:
    """Raises UnsupportedParameter for a scope that names tokens, for an engine whose steering does not know the ids of generated
    tokens when it acts on them."""
    for one in plan.interventions:
        for name in ("token_ids", "roles"):
            if getattr(one.spec.scope, name) is not None:
                raise UnsupportedParameter(f"the engine {engine!r} does not support scope.{name}", param="scope")


def _check(name: str, value: float, allowed: bool, range_: str) -> None:
    if not allowed:
        raise InvalidRequest(f"{name} must be {range_}, got {value}", param=name)
