"""Checks what a caller asks of an engine, and tokenizes prompts, for engines and their callers alike."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isfinite
from typing import TypeVar

from steering.engine.api import (
    CapturePrompt,
    CaptureSpec,
    FitTask,
    NeutralText,
    Prompt,
    SamplingParams,
    Tokenizer,
    TokenPair,
)
from steering.errors import ContextLengthExceeded, InvalidRequest, LimitExceeded
from steering.injection.slots import MAX_THRESHOLDS
from steering.model.hook_points import layer_of
from steering.model.info import ModelInfo
from steering.model.phases import PhaseRules
from steering.pairs import ChatMessage, ToolMessage
from steering.plan.types import MAX_HOLDS, UNSTEERED, SteeringPlan
from steering.schemas.structured import Grammar
from steering.threads import run_in_thread

T = TypeVar("T")
MAX_TEXT_TOKENS = 512
"""Tokens of the longest text to fit on: its forward pass is one piece of work, which running requests wait for."""


def check_sampling(params: SamplingParams, info: ModelInfo) -> None:
    """Raises InvalidRequest for a parameter out of its range; the message names the field and what is allowed."""
    _check("max_tokens", params.max_tokens, params.max_tokens >= 1, "at least 1")
    _check("temperature", params.temperature, 0.0 <= params.temperature < inf, "0 or more")
    _check("top_p", params.top_p, 0.0 < params.top_p <= 1.0, "above 0 and at most 1")
    _check("top_k", params.top_k, params.top_k >= 0, "0 (off) or more")
    _check("min_p", params.min_p, 0.0 <= params.min_p <= 1.0, "from 0 to 1")
    _check("repetition_penalty", params.repetition_penalty, 0.0 < params.repetition_penalty < inf, "above 0")
    _check("presence_penalty", params.presence_penalty, isfinite(params.presence_penalty), "finite")
    _check("frequency_penalty", params.frequency_penalty, isfinite(params.frequency_penalty), "finite")
    if params.logprobs is not None:
        _check("logprobs", params.logprobs, 0 <= params.logprobs <= info.vocab_size, f"from 0 to {info.vocab_size}")
    for token, bias in params.logit_bias.items():
        _check("logit_bias", token, 0 <= token < info.vocab_size, f"for token ids from 0 to {info.vocab_size - 1}")
        _check("logit_bias", bias, isfinite(bias), "finite")
    if "" in params.stop:
        raise InvalidRequest("stop: a stop string must not be empty", param="stop")


def check_capture(prompt: CapturePrompt, length: int) -> None:
    """Raises InvalidRequest for a prompt_length or a first position outside a text of that many tokens."""
    outside = f"lies outside the text of {length} tokens"
    if prompt.prompt_length is not None and not 1 <= prompt.prompt_length <= length:
        raise InvalidRequest(f"prompt_length {prompt.prompt_length} {outside}", param="prompt_length")
    if not 0 <= prompt.first < length:
        raise InvalidRequest(f"first {prompt.first} {outside}", param="first")


def check_layers(spec: CaptureSpec, layer_count: int) -> None:
    """Raises InvalidRequest for layers the model does not have, or for nothing to read. Layers may be points that the model has."""
    wrong = [layer for layer in spec.layers if not 0 <= layer_of(layer) < layer_count]
    if wrong:
        allowed = f"the model has layers 0 to {layer_count - 1}"
        raise InvalidRequest(f"layers {wrong} do not exist; {allowed}", param="layers")
    if not spec.layers and not spec.logits:
        raise InvalidRequest("a capture needs a layer to read, or logits", param="layers")


def check_plan(plan: SteeringPlan) -> None:
    """Raises LimitExceeded for more thresholds or controllers than the tables of an engine hold. A plan has more of them than could be
    resolved where the interventions of a policy were put behind its own later."""
    for limit, found, what in (
        (MAX_THRESHOLDS, len(plan.thresholds), "thresholds"),
        (MAX_HOLDS, len(plan.held), "held strengths, counted over the layers"),
    ):
        if found > limit:
            raise LimitExceeded(
                f"the steering has {found} {what}, with what an operator makes mandatory; at most {limit} are allowed",
                param="steering",
            )


def check_task(task: FitTask, info: ModelInfo) -> None:
    """Raises InvalidRequest for what cannot be fitted, LimitExceeded for texts of more than MAX_TEXT_TOKENS."""
    if not 0 <= task.layer < info.layer_count:
        allowed = f"the model has layers 0 to {info.layer_count - 1}"
        raise InvalidRequest(f"layer {task.layer} does not exist; {allowed}", param="layers")
    if not task.pairs:
        raise InvalidRequest("a direction is fitted on at least one pair", param="pairs")
    check_fitted(task.pairs, task.neutral, info)
    low, high = task.strengths
    if not 0.0 < low <= high < inf:
        raise InvalidRequest(f"strengths must lie above 0, low to high, got {low} to {high}", param="strengths")
    _check("kl_coefficient", task.kl_coefficient, 0.0 <= task.kl_coefficient < inf, "finite and not negative")
    for name in ("amount", "learning_rate", "steps", "batch"):
        value = getattr(task, name)
        _check(name, value, 0 < value < inf, "above 0")
    if task.initial is not None:
        shape = tuple(task.initial.shape)
        if shape != (info.d_model,) or not 0.0 < float(task.initial.norm()) < inf:
            expected = f"{info.d_model} finite numbers, not all 0"
            raise InvalidRequest(f"the initial direction must be {expected}, got shape {shape}", param="initial")


def check_fitted(pairs: Iterable[TokenPair], neutral: Iterable[NeutralText], info: ModelInfo) -> None:
    """Raises InvalidRequest for texts of which no token is scored, LimitExceeded for those of more than MAX_TEXT_TOKENS."""
    limit = min(MAX_TEXT_TOKENS, info.context_length)
    texts = [(pair.start, ids) for pair in pairs for ids in (pair.positive, pair.negative)]
    for start, ids in [*texts, *((text.start, text.ids) for text in neutral)]:
        if not 1 <= start < len(ids):
            raise InvalidRequest(f"start {start} leaves no token to score in a text of {len(ids)}", param="pairs")
        if len(ids) > limit:
            raise LimitExceeded(f"a text has {len(ids)} tokens; at most {limit} can be fitted on", param="pairs")


def _check(name: str, value: float, allowed: bool, range_: str) -> None:
    if not allowed:
        raise InvalidRequest(f"{name} must be {range_}, got {value}", param=name)


MAX_NAMED = 8
"""Control strings that a warning names."""
MAX_INLINE_CHARACTERS = 2_000
"""A longer prompt is tokenized in a thread, so that the event loop keeps serving others (about 1 ms for so many)."""


async def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """Returns the token ids of a prompt, without blocking the event loop. Raises what `Tokenizer.encode` raises."""
    return (await encode_steered(tokenizer, prompt, UNSTEERED))[0]


def encode_with_plans(
    tokenizer: Tokenizer,
    prompt: Prompt,
    plans: Sequence[SteeringPlan],
    grammar: Grammar | None = None,
    *,
    length: int | None = None,
    phases: bool = False,
) -> tuple[tuple[int, ...], tuple[SteeringPlan, ...]]:
    """Returns the token ids of a prompt, and the plans with the roles of its tokens where a scope of theirs asks for them, with what
    decides the phases of the answer, and with a warning where a text contains control strings.

    The prompt is tokenized once. grammar: what the answer must match. length: tokens of the prompt, where an answer follows it.
    phases: whether they are asked for by something else than a scope. Raises InvalidRequest where roles are asked for and the prompt has
    no messages, and where the request lists an intervention of phases that the answer cannot have.
    """
    if any(map(_lacks_roles, plans)):
        if isinstance(prompt, str) or not (prompt and isinstance(prompt[0], ChatMessage)):
            raise InvalidRequest("scope.roles needs a prompt of messages: tokens of a text have no role", param="scope")
        ids, roles = tokenizer.encode_with_roles(prompt)
        plans = [replace(plan, prompt_roles=roles) if _lacks_roles(plan) else plan for plan in plans]
    else:
        ids = tokenizer.encode(prompt)
        plans = [_with_warning(tokenizer, prompt, plan) for plan in plans]
    return ids, tuple(_with_phases(tokenizer, prompt, ids[:length], plan, grammar, phases) for plan in plans)


async def encode_steered(
    tokenizer: Tokenizer, prompt: Prompt, plan: SteeringPlan, grammar: Grammar | None = None, *, phases: bool = False
) -> tuple[tuple[int, ...], SteeringPlan]:
    """Does what `encode_with_plans` does for one plan, without blocking the event loop. To be called by whoever goes on with the
    token ids alone; engines do it for conversations."""
    encode = partial(encode_with_plans, tokenizer, prompt, (plan,), grammar, phases=phases)
    ids, (bound,) = await tokenizing([(prompt, plan)], encode, phases=phases)
    return ids, bound


async def tokenizing(
    prompts: Sequence[tuple[Prompt, SteeringPlan]], work: Callable[[], T], *, phases: bool = False
) -> T:
    """Returns what work returns that tokenizes these prompts, in a thread where it takes long. phases: see `encode_with_plans`."""
    long = sum(prompt_size(prompt) for prompt, _ in prompts) > MAX_INLINE_CHARACTERS
    reads = any(  # roles, or the texts of tokens
        _lacks_roles(plan) or (plan.phases is None and (plan.needs_phases or phases)) for _, plan in prompts
    )
    return await run_in_thread(work) if long or reads else work()


def _with_warning(tokenizer: Tokenizer, prompt: Prompt, plan: SteeringPlan) -> SteeringPlan:
    """Adds a warning that names the control strings of a text prompt. Of a conversation the template writes them."""
    found = tokenizer.control_strings(prompt) if isinstance(prompt, str) else ()
    if not found:
        return plan
    named = ", ".join(found[:MAX_NAMED]) + (f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else "")
    warning = f"the prompt contains {named}, read as plain characters and not as control tokens; send 'messages', or token ids"
    return replace(plan, warnings=(*plan.warnings, warning))


def phase_rules(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    grammar: Grammar | None,
    *,
    last: ChatMessage | None = None,
    tools: bool = False,
) -> PhaseRules:
    """Returns what decides the phases of an answer. ids: of its prompt. last: the last message of that; None where it is no
    conversation. tools: whether the answer may call some."""
    json, found = _is_json(grammar), getattr(tokenizer, "phase_rules", None)
    if found is None:  # some that tests use know no templates
        return PhaseRules(json=json)
    rules: PhaseRules = found(ids, last, tools=tools, json=json)
    # what must match a grammar from its first character never thinks
    return rules if grammar is None else replace(rules, thinking=None, opened=False, may_begin=True)


def _is_json(grammar: Grammar | None) -> bool:
    return grammar is not None and grammar.kind == "json_schema"


def _with_phases(
    tokenizer: Tokenizer, prompt: Prompt, ids: Sequence[int], plan: SteeringPlan, grammar: Grammar | None, wanted: bool
) -> SteeringPlan:
    """Adds what decides the phases of the answer where a scope asks for them, they are wanted, or the answer has some that its prompt's
    tokens do not tell: it may call tools, it may think, or it must be JSON. A plan that has it keeps it."""
    messages = () if isinstance(prompt, str) else [part for part in prompt if isinstance(part, ChatMessage)]
    tools = any(isinstance(one, ToolMessage) and one.tools for one in messages)
    thinks = bool(messages) and getattr(tokenizer, "thinking_markers", None) is not None
    if plan.phases is None and (plan.needs_phases or wanted or _is_json(grammar) or tools or thinks):
        last = messages[-1] if messages else None
        plan = replace(plan, phases=phase_rules(tokenizer, ids, grammar, last=last, tools=tools))
    if plan.phases is None:
        return plan
    warnings = dict.fromkeys((*plan.warnings, *_without_effect(plan, plan.phases)))
    return plan if len(warnings) == len(plan.warnings) else replace(plan, warnings=tuple(warnings))


NO_ANSWER = (
    "interventions in the phase 'answer' (those without a scope, in a chat with tools or of a model that thinks) do not act: this answer "
    "must be JSON, which is the phase 'json'"
)


def _without_effect(plan: SteeringPlan, rules: PhaseRules) -> Iterator[str]:
    """Yields warnings of interventions that act on phases alone of which this request has none: on answers where these must be JSON, and
    those that the request did not list itself. Raises InvalidRequest for one that it did."""
    for number, wanted in enumerate(one.spec.scope.phase for one in plan.interventions[: plan.own]):
        if wanted is None or rules.possible.intersection(wanted):
            continue
        possible = f"tokens of this request can be in {', '.join(sorted(rules.possible))}"
        if set(wanted) == {"answer"}:
            yield NO_ANSWER
        elif number < plan.stored:
            yield f"scope.phase {', '.join(wanted)} does not act: {possible}"
        else:
            raise InvalidRequest(
                f"scope.phase {', '.join(wanted)}: {possible}; the chat template of the model and the request decide which",
                param="scope",
            )


def _lacks_roles(plan: SteeringPlan) -> bool:
    return plan.prompt_roles is None and plan.needs_roles


def prompt_size(prompt: Prompt) -> int:
    """Returns the characters of a text or conversation, or the number of token ids. Tools count as a long text."""
    if isinstance(prompt, str):
        return len(prompt)
    if any(isinstance(part, ToolMessage) for part in prompt):
        return MAX_INLINE_CHARACTERS + 1
    return sum(len(part.content) if isinstance(part, ChatMessage) else 1 for part in prompt)


def check_context(prompt_tokens: int, max_tokens: int, info: ModelInfo, *, param: str | None = None) -> None:
    """Raises ContextLengthExceeded where a prompt and the tokens asked for do not fit the model's context.

    param: the field that holds the prompt or text; by default the field that would have to be smaller.
    """
    if prompt_tokens + max_tokens <= info.context_length:
        return
    asked = f" and max_tokens is {max_tokens}" if max_tokens else ""
    raise ContextLengthExceeded(
        f"the prompt has {prompt_tokens} tokens{asked}; the model's context holds {info.context_length}",
        param=param or ("max_tokens" if max_tokens > 0 and prompt_tokens < info.context_length else "prompt"),
    )
