"""Phases: a slow reference labels the same tokens, in texts that are cut anywhere and in both engines; calls stay as unsteered."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from math import inf
from threading import get_ident
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from app.api.answer_parts import AnswerParts, Call
from app.api.conversation import ToolUse
from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, SamplingParams
from steering.engine.options import EngineLimits
from steering.engine.prompts import NO_ANSWER, encode_steered, encode_with_plans, tokenizing
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.vllm.messages import RequestSteering, decode, doses_of, encode
from steering.errors import InvalidRequest
from steering.injection.readings import MonitorSet
from steering.model.loading import opened
from steering.model.phases import GPT_OSS, PhaseRules, PhaseTracker, thinking_of
from steering.model.prompt import ModelTokenizer
from steering.model.thinking import TAIL, Thought
from steering.model.tool_calls import FORMATS
from steering.pairs import ChatMessage, ContinuedMessage, ToolMessage
from steering.plan.scope import computes_whole
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.structured import Grammar
from steering.spec import SteeringSpec, TokenScope
from tests.engines import family_engine, run, run_all, run_alone, run_at_once, sampling
from tests.families import LLAMA_LIKE, build
from tests.plans import plan_for, vectors_for
from tests.reference import Reference
from tests.scripted_model import SCRIPTED_MODEL, ScriptedTokenizer
from tests.steering.engine.memory.test_memory import POSITION
from tests.steering.engine.vllm.driven_model import DrivenModel
from tests.steering.injection.slow_phases import FAMILIES, Family, slow_phase
from tests.steering.injection.test_monitors import monitor
from tests.tool_templates import build_thinking_tokenizer, build_tool_tokenizer

PIECES = (
    " ", "\n", ";", "``", "`", "```json", "```", "{", "}", "[", "]", '"', "\\", "<", "[T", "<t", "word", "a < b", ', "x": 1', '"}"', "é",
    '{"name": "f", "arguments": {"a": "}\\""}}', "[{}, {}]",
)  # fmt: skip


def rules_of(family: Family, *, tools: bool = True) -> PhaseRules:
    """Returns the rules at the end of a prompt of a family."""
    (form,) = (one for one in FORMATS if one.name == family.template)
    return PhaseRules.of(family.think, form if tools else None).starting(opened=family.opened, may_begin=True)


def random_texts(draw: random.Random, family: Family) -> list[str]:
    """Returns a text in tokens: markers, whole and in part, amid others, cut anywhere."""
    markers = [one for one in (*(family.think or ()), family.call, family.end) if one]
    text = "".join(draw.choice((*PIECES, *markers * 3)) for _ in range(draw.randint(1, 14)))
    cuts = sorted({0, len(text), *(draw.randint(0, len(text)) for _ in range(draw.randint(0, len(text))))})
    texts = [text[start:end] for start, end in pairwise(cuts)]
    return [*texts[:2], "", *texts[2:]]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.template)
def test_every_token_has_the_phase_that_a_slow_reading_of_the_text_so_far_gives_it(family: Family) -> None:
    draw, seen = random.Random(7), set[str]()
    for _ in range(60):
        tools, texts = draw.random() < 0.8, random_texts(draw, family)
        tracker = PhaseTracker(rules_of(family, tools=tools), texts.__getitem__)
        found = [tracker.add(number) for number in range(len(texts))]
        expected = [slow_phase(family, texts, number, tools=tools) for number in range(len(texts))]
        assert found == expected, texts
        seen.update(found)
    assert seen >= {"answer", "tool", *({"thinking"} if family.think else {"prompt"})}


def test_only_the_prompts_end_behind_its_last_control_token_counts() -> None:
    for template, expected in (
        ("{% if x %}<think>\n</think>{% endif %}", ("<think>", "</think>")),
        ("{{ content.split('</think>') }}", ("<think>", "</think>")),
        ("[THINK] [/THINK]", ("[THINK]", "[/THINK]")),
        ("<|channel|>analysis<|message|> <|end|>", GPT_OSS),
        ("{{ content }}<|end|>", None),
    ):
        assert thinking_of(template) == expected
    tokenizer = ModelTokenizer(hermes(), vocab_size=264, eos_ids=(258,))
    for text, begun in (
        ("<|end|>\n<|assistant|>\n", False),
        ("<think><|end|>\n<|assistant|>\n<tool_call>{}</tool_call>\n", False),
        ("<|assistant|>\n<think>\n", True),
        ("<|assistant|><think>a b", True),
        ("<|assistant|><think>a</think> b <tool", False),
    ):
        ids = tokenizer._backend.encode(text, add_special_tokens=False).ids
        rules = tokenizer.phase_rules(ids)
        assert (rules.opened, rules.may_begin) == (begun, True), text


def test_only_the_template_and_a_continued_answer_begin_the_thinking_of_a_conversation() -> None:
    """A template whose roles are no control tokens: what a user writes stands behind the last of those."""
    tokenizer = hermes()
    ask = "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}" + ask + "{# <think></think> #}"
    )
    model = ModelTokenizer(tokenizer, vocab_size=264, eos_ids=(258,))
    user = ChatMessage("user", "Why does <think> not end?")
    for messages, begun, may_begin in (
        ((user,), False, True),
        ((user, ContinuedMessage("assistant", "<think>So")), True, False),
        ((user, ContinuedMessage("assistant", "<think>So</think> it")), False, False),
    ):
        _, (plan,) = encode_with_plans(model, messages, (UNSTEERED,))
        assert plan.phases is not None
        assert (plan.phases.opened, plan.phases.may_begin) == (begun, may_begin), messages
        _, (held,) = encode_with_plans(model, messages, (UNSTEERED,), Grammar("regex", "[a-z]+"), phases=True)
        assert held.phases is not None
        assert held.phases.possible == {"prompt", "answer"}, "what must match a grammar never thinks"


KINDS = (
    ("hermes", "think", False),
    ("hermes", "think", True),
    ("mistral", "mistral", False),
    ("llama3_json", "think", False),
)
FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}


@pytest.mark.parametrize(("family", "thinking", "opened"), KINDS)
def test_what_the_api_returns_as_text_thoughts_and_calls_is_in_these_phases(
    family: str, thinking: str, opened: bool
) -> None:
    """Letters that come once each tell where a character of an answer ends up."""
    tokenizer = ModelTokenizer(build_thinking_tokenizer(family, thinking, opened=opened), vocab_size=300)
    form, calls = tokenizer.thinking_format, tokenizer.tool_format
    assert form is not None
    assert calls is not None
    draw, seen, opening, closing = random.Random(3), set[tuple[str, bool]](), "[" * calls.many, "]" * calls.many
    for _ in range(80):
        begun = draw.choice([None, None, f"{form.begin}So", f"{form.begin}a{form.end} So", "So"])
        offered = begun is None and draw.random() < 0.7
        last = ContinuedMessage("assistant", begun) if begun else ToolMessage("user", f"Why {form.begin}")
        earlier = [ChatMessage("user", "Hi")] if begun else []
        messages: Any = (*earlier, last)
        if offered:
            messages = (ToolMessage("user", f"Why {form.begin}", (FUNCTION,)),)
        letters, in_json = map(chr, range(0x4E00, 0x9000)), set[str]()

        def call(name: str) -> str:
            inside = next(letters)  # noqa: B023
            in_json.add(inside)  # noqa: B023
            return f'{opening}{{"name": "{name}", "arguments": {{"a": "{inside}"}}}}{closing}'

        makers: list[Any] = [
            lambda: next(letters),  # noqa: B023
            lambda: draw.choice((" ", "\n", ";", "<", "[", form.begin[:3], calls.begin[:5])),
            lambda: draw.choice((form.begin, form.end)),
            lambda: calls.begin + call("f") + calls.end,
            lambda: draw.choice((calls.begin, "", calls.begin + "no ", "```", "```json\n")) + call(draw.choice("fg")),
            lambda: f"```json\n{call('f')}\n```",
        ]
        answer = "".join(draw.choice(makers)() + draw.choice((next(letters), "")) for _ in range(draw.randint(1, 9)))
        ids, (plan,) = encode_with_plans(tokenizer, messages, (UNSTEERED,), phases=True)
        assert plan.phases is not None
        tail = "".join(map(tokenizer.token_text, ids[-TAIL:]))
        use = ToolUse(calls, (FUNCTION,), frozenset({"f"}), None, False) if offered else None
        parts = AnswerParts(use, partial(form.parser, messages[-1], tail)).reader(0).read(0, answer, last=True)
        tracker = PhaseTracker(plan.phases, answer.__getitem__)
        phases = {one: tracker.add(at) for at, one in enumerate(answer)}
        for part in parts:
            expected = "tool" if isinstance(part, Call) else "thinking" if isinstance(part, Thought) else "answer"
            text = part.arguments if isinstance(part, Call) else part.text if isinstance(part, Thought) else part
            for letter in filter(lambda one: one >= "\u4e00", text):
                # what has begun as a call and is none was steered as one before that was known
                late = expected == "answer" and letter in in_json and phases[letter] == "tool"
                assert late or phases[letter] == expected, (answer, letter, parts)
                seen.add((expected, offered))
    assert seen >= {("answer", True), ("answer", False), ("thinking", False), ("tool", True)}


def hermes() -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose template has calls and thinking, which it leaves to the model."""
    tokenizer = build_tool_tokenizer("hermes", tokens=False)
    tokenizer.chat_template += "{# <think></think> #}"
    return tokenizer


CALL = r'\{"n": "[a-z]{2}"\}'
ANSWERS = {
    "hermes": rf"[a-z ]{{3}}</think>\n\n<tool_call>{CALL}</tool_call>\n[a-z]{{3}}<[a-z]{{4}}",
    "llama3_json": rf"{CALL}; {CALL}\n[a-z]{{3}} [a-z]{{16}}",
    "mistral": rf"\[THINK\][a-z ]{{3}}\[/THINK\]\[TOOL_CALLS\] \[{CALL}\]\n[a-z\[]{{6}}",
}
"""What the answers of a random model are held to, by family."""
ANSWER: dict[str, Any] = {"phase": ["answer"]}


@dataclass
class World:
    """A tiny model that speaks as a family, and a conversation with a tool."""

    family: Family
    model: PreTrainedModel
    engine: TransformersEngine
    prompt: tuple[ToolMessage, ...]

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(max_tokens=70, grammar=Grammar("regex", ANSWERS[self.family.template]))

    def phase_of(self, ids: Sequence[int], number: int) -> str:
        return phase_at_end(self.family, tuple(ids[: number + 1]))

    async def plan(self, items: list[dict[str, Any]]) -> SteeringPlan:
        """Returns a plan whose phases are those of a free answer: one that a grammar holds does not think."""
        plan = await plan_for(items, vectors_for(self.engine.info, means=True), self.engine.info)
        return encode_with_plans(self.engine.tokenizer, self.prompt, (plan,), phases=True)[1][0]

    def reference(self, items: list[dict[str, Any]]) -> Reference:
        vectors, spec = vectors_for(self.engine.info, means=True), SteeringSpec.model_validate({"interventions": items})
        return Reference(self.model, self.model.model.layers, spec, vectors, phase_of=self.phase_of)


@cache
def phase_at_end(family: Family, ids: tuple[int, ...]) -> str:
    return slow_phase(family, [chr(one) if one < 256 else "" for one in ids], len(ids) - 1)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda one: one.template)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """An engine in whose cache two answers fit."""
    family: Family = request.param
    tokenizer = build_tool_tokenizer(family.template, tokens=False)
    tokenizer.chat_template += f"{{# {' '.join(family.think or ())} #}}"
    if family.opened:
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "<|assistant|>\\n' }}{% endif %}{#", "<|assistant|>\\n<think>\\n' }}{% endif %}{#"
        )
    model, own = (build("LlamaForCausalLM", **{**LLAMA_LIKE, "max_position_embeddings": 512}) for _ in range(2))
    prompt = (ToolMessage("user", "Hello there.", ({"type": "function", "function": {"name": "f"}},)),)
    loaded = opened(own, tokenizer, name="tiny")
    blocks = 2 * ((len(loaded.tokenizer.encode(prompt)) + 55) // BLOCK) + 1
    engine = TransformersEngine(loaded, EngineLimits(cache_bytes=blocks * BLOCK * POSITION))
    yield World(family, model, engine, prompt)
    asyncio.run(engine.close())


def item(scope: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"vector": "alpha", "strength": 2.0, "layers": [1], "scope": scope, **fields}


def cases() -> list[list[dict[str, Any]]]:
    """Returns steering of some phases each, with other fields that depend on the token."""
    others, late = {"phase": ["tool", "thinking"]}, {"tokens": "generated", "start": 3, "phase": ["answer", "tool"]}
    removal: dict[str, Any] = {"operation": "ablate", "strength": 1.0}
    held = item({"tokens": "generated", **ANSWER}, vector="beta", hold={"score": 0.5}, strength=3.0)
    return [
        [item(ANSWER)],
        [item(late)],
        [item({"phase": ["prompt", "answer"]}, **removal), item({}, vector="beta", **removal)],
        [item(others, schedule={"kind": "linear", "tokens": 30, "to": 0.2}), held],
    ]


async def test_the_engine_steers_as_the_slow_reference_does_with_shared_prompts_and_preemption(world: World) -> None:
    plans = [await world.plan(items) for items in cases()]
    requests = [GenerationRequest(world.prompt, world.sampling, plan) for plan in plans]
    together = await run_at_once(world.engine, requests)
    assert world.engine.stats().preemptions > 0
    again = await run(world.engine, requests[0])
    assert again.finish.cached_tokens > 0
    assert (again.tokens, again.finish.steering.tokens) == (together[0].tokens, together[0].finish.steering.tokens)
    ids = world.engine.tokenizer.encode(world.prompt)
    for items, outcome in zip(cases(), together, strict=True):
        reference = world.reference(items)
        reference.prompt_length = len(ids)
        logits = reference.logits([*ids, *outcome.tokens])[len(ids) - 1 : -1]
        text = "".join(map(chr, outcome.tokens))
        for number, (token, row) in enumerate(zip(outcome.tokens, logits, strict=True)):
            better = (row > row[token] + 1e-4).nonzero().flatten().tolist()
            wrong = [one for one in better if one < 128 and may_follow(world.family, text[:number] + chr(one))]
            assert not wrong, (items, text, number)
        if len(items) == 1:
            assert outcome.finish.steering.tokens == (len(reference.acted - {len(ids) + len(outcome.tokens) - 1}),), (
                items
            )
        assert {world.phase_of(outcome.tokens, number) for number in range(len(outcome.tokens))} >= {"answer", "tool"}


def may_follow(family: Family, text: str) -> bool:
    return regex.fullmatch(ANSWERS[family.template], text, partial=True) is not None


async def test_thinking_and_calls_are_those_of_the_unsteered_model_where_only_answers_are_steered(world: World) -> None:
    plan = await world.plan([item(ANSWER, strength=9.0)])
    always = monitor(vectors_for(world.engine.info)["beta"], 1, -inf, action="flag", phase=("tool", "prompt"))
    request = GenerationRequest(world.prompt, world.sampling, await world.plan([]), monitors=MonitorSet([always]))
    steered, plain = await run_alone(world.engine, [replace(request, plan=plan), request])
    phases = [world.phase_of(plain.tokens, number) for number in range(len(plain.tokens))]
    first = phases.index("answer")
    raised = [number for number, event in enumerate(plain.events) if event.raised]
    assert raised == [0, *(number + 1 for number, phase in enumerate(phases[:-1]) if phase in ("tool", "prompt"))]
    assert always.statistics.count == len(raised) + sum(bool(event.raised) for event in steered.events)
    assert phases[:first].count("tool") > 20
    assert steered.tokens[: first + 1] == plain.tokens[: first + 1]
    assert steered.tokens[first + 1 :] != plain.tokens[first + 1 :]


async def test_the_worker_of_vllm_steers_the_same_tokens_in_pieces_and_after_a_preemption(world: World) -> None:
    items = cases()[3 if world.family.bare else 1]
    ids, (plan,) = encode_with_plans(world.engine.tokenizer, world.prompt, (await world.plan(items),))
    outcome = await run(world.engine, GenerationRequest(ids, world.sampling, plan))
    text = CapturePrompt((*ids, *outcome.tokens), plan, len(ids))
    (capture,) = await world.engine.capture([text], CaptureSpec((), logits=True))
    assert capture.logits is not None
    probable = capture.logits[len(ids) - 1 : -1].argmax(dim=-1).tolist()
    driven = DrivenModel(world.model)
    driven.steering.put_token_texts(world.engine.tokenizer.token_texts())
    driven.steering.put_plan("plan", decode(encode(plan), SteeringPlan))
    steering, count = RequestSteering("key", "plan", "", len(ids)), len(outcome.tokens)
    kept = 0 if computes_whole(plan) else 32
    found = driven.run(steering, ids, count, forced=outcome.tokens, piece=50, preempt_after=30, kept=kept)
    assert driven.failures() == []
    assert found == probable
    assert doses_of(plan, [driven.report()]).report().tokens == outcome.finish.steering.tokens


async def test_the_rules_of_a_prompt_are_found_in_a_thread() -> None:
    threads: list[int] = []

    class Noting(ScriptedTokenizer):
        """Notes the thread in which it is asked for the texts of tokens."""

        def phase_rules(self, *_: object, **__: object) -> PhaseRules:
            threads.append(get_ident())
            return PhaseRules()

    plan = await plan_for([item(ANSWER)], vectors_for(SCRIPTED_MODEL), SCRIPTED_MODEL)
    for asked, phases in ((plan, False), (UNSTEERED, True)):
        await encode_steered(Noting(), (1, 2, 3), asked, phases=phases)
    assert len(threads) == 2
    assert get_ident() not in threads


@pytest.mark.parametrize(("texts", "elsewhere"), [(["a" * 100] * 20, False), (["a" * 100] * 21, True)])
async def test_texts_that_are_long_together_are_tokenized_in_a_thread(texts: list[str], *, elsewhere: bool) -> None:
    thread = await tokenizing([(text, UNSTEERED) for text in texts], get_ident)
    assert (thread != get_ident()) == elsewhere


async def test_json_is_a_phase_of_its_own(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    params = SamplingParams(max_tokens=6, grammar=Grammar("json_schema", '{"enum": ["<x>"]}'))
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        plans = [
            await plan_for([item({"phase": [one]})], vectors_for(engine.info), engine.info)
            for one in ("json", "prompt", "answer", "tool")
        ]
        json, prompt = await run_all(engine, [GenerationRequest((1, 2, 3), params, plan) for plan in plans[:2]])
        with pytest.raises(InvalidRequest, match=r"scope.phase tool: tokens of this request can be in json, prompt"):
            await run(engine, GenerationRequest((1, 2, 3), params, plans[3]))
        _, (answer,) = encode_with_plans(engine.tokenizer, (1, 2, 3), plans[2:3], params.grammar)
        _, (stored,) = encode_with_plans(engine.tokenizer, (1,), [replace(plans[3], stored=1)], params.grammar)
    assert answer.warnings == (NO_ANSWER,)
    assert stored.warnings == ("scope.phase tool does not act: tokens of this request can be in json, prompt",)
    assert json.finish.steering.tokens == (len(json.tokens) - 1,)
    assert prompt.finish.steering.tokens == (3,)


def test_what_makes_no_sense_is_refused() -> None:
    for wrong, named in (
        ({"phase": []}, "at least 1 item"),
        ({"phase": ["call"]}, "'prompt', 'thinking', 'answer', 'tool' or 'json'"),
        ({"tokens": "prompt", "phase": ["prompt", "tool"]}, "tokens 'prompt' are in the phase 'prompt', not in tool"),
        ({"tokens": "last", "phase": ["answer"]}, "not in answer"),
        ({"tokens": "generated", "phase": ["prompt"]}, "use tokens 'last'"),
        ({"roles": ["user"], "phase": ["answer"]}, "tokens in answer are the assistant's, not of user"),
    ):
        with pytest.raises(ValidationError, match=named):
            TokenScope.model_validate(wrong)


async def test_a_phase_that_no_token_can_have_is_refused(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        plan = await plan_for([item({"phase": ["tool", "thinking"]})], vectors_for(engine.info), engine.info)
        with pytest.raises(
            InvalidRequest, match=r"scope.phase tool, thinking: tokens of this request can be in answer, prompt"
        ):
            await run(engine, GenerationRequest((1, 2), sampling(1), plan))
        allowed = await plan_for([item({"phase": ["tool", "answer"]})], vectors_for(engine.info), engine.info)
        outcome = await run(engine, GenerationRequest((1, 2), sampling(4), allowed))
    assert outcome.finish.steering.tokens == (3,), "the last token is not computed, and the prompt is not steered"
    assert outcome.finish.steering.fired_at == (1,)
