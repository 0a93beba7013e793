"""The OpenAI-compatible routes, for unmodified OpenAI clients: chat, embeddings, models, and what chat and text completions share."""

import base64
import secrets
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, cast

from fastapi import APIRouter
from starlette.responses import Response

from app.api.answer_parts import AnswerParts, Call, Part, said, thoughts
from app.api.context import AdmittedDep, Context, ContextDep, encode_prompts
from app.api.conversation import Offer, ThinkingSwitch, check_arguments, offered
from app.api.generate import Generation, applied_steering, raised_in, usage_of
from app.api.openai_schemas import ChatFields, ChatRequest, EmbeddingRequest, inputs_of
from app.api.openai_schemas import GenerationRequest as OpenAIGeneration
from app.core.admission import check_limit, share
from app.core.answers import SCORE_BYTES, Event, EventStream, event_stream, json_in_thread
from app.core.errors import body_of
from app.core.requests import ApiRoute, needs
from app.core.telemetry import TokenClock
from steering.engine.api import Prompt, TokenEvent
from steering.engine.capabilities import thinking_format, tool_format_of
from steering.errors import InvalidRequest, ModelNotFound, ProfileNotFound, SteeringError, UnsupportedParameter
from steering.layer_indices import layer_index
from steering.model.phases import PhaseTracker
from steering.model.thinking import TAIL, Thought
from steering.pairs import ChatMessage
from steering.plan.types import SteeringPlan
from steering.schemas.messages import SamplingFields
from steering.schemas.resources import ProfileAnswer
from steering.schemas.steering import ProfileSteering, Steering
from steering.store.records import ProfileName
from steering.threads import run_in_thread
from steering.vectors import mix
from steering.workflows.generate import Answer, assemble, choices, interleaved, stream_events
from steering.workflows.logprobs import embed

_GENERATE = needs("generate")
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}, "application/json": {}}}}

router = APIRouter(route_class=ApiRoute, tags=["openai"])


@router.get("/v1/models", openapi_extra=_GENERATE)
async def models(context: ContextDep) -> dict[str, Any]:
    """Lists the loaded model and each profile as `<model>@<profile>`."""
    name = context.engine.info.name
    profiles = await context.store.profiles.names()
    items = [_item(name, None), *(_item(f"{name}@{profile.name}", profile) for profile in profiles)]
    return {"object": "list", "data": items}


@router.get("/v1/models/{model:path}", openapi_extra=_GENERATE)
async def model(model: str, context: ContextDep) -> dict[str, Any]:
    """Describes one model."""
    profile = _profile_in(context, model)
    return _item(model, None if profile is None else await _profile(context, model, profile))


@router.post("/v1/chat/completions", openapi_extra=_GENERATE, response_class=Response, responses=STREAM)
async def chat_completions(body: ChatRequest, context: AdmittedDep) -> Response:
    """Answers a conversation, as OpenAI's chat completions do; `steering` in and out."""
    check_limit(len(body.messages), context.settings.max_messages, "messages", "messages")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    work = ChatWork(context, body, (body.top_logprobs or 0) if body.logprobs else None)
    with work.renaming():
        work.check()
        await work.prepare_chat(await conversation_of(context, body), body.offer, limit, body.thinking)
    return await work.respond()


@router.post("/v1/embeddings", openapi_extra=_GENERATE)
async def create_embeddings(body: EmbeddingRequest, context: AdmittedDep) -> Response:
    """Returns one pooled activation of the chosen layer for each input."""
    engine, texts = context.engine, inputs_of(body.input)
    check_limit(len(texts), context.settings.max_texts, "inputs", "input")
    if (profile := _profile_in(context, body.model)) is not None:
        await _profile(context, body.model, profile)
        raise UnsupportedParameter(
            f"embeddings are not steered: ask for model {engine.info.name!r}, or POST /v1/activations with 'steering'",
            param="model",
        )
    layer = layer_index(body.layer, engine.info.layer_count, param="layer")
    ids = await encode_prompts(engine, texts, "input")
    tokens = sum(map(len, ids))
    context.check_activations(len(texts), 1, "activations (inputs x d_model)", "input")
    context.charge(tokens, len(texts) * engine.info.d_model * SCORE_BYTES)
    found = await embed(engine, ids, layer, body.position)

    def encoded(values: Sequence[float]) -> list[float] | str:
        if body.encoding_format == "float":
            return list(values)
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()  # little-endian float32

    def build() -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": encoded(values)} for index, values in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body.model, "data": data, "usage": usage, "layer": layer}

    return await json_in_thread(build)


def _profile_in(context: Context, model: str) -> str | None:
    """Returns the profile that a model name names, None for the plain model. Raises ModelNotFound for another model."""
    loaded = context.engine.info.name
    if model == loaded:
        return None
    profile = model.removeprefix(f"{loaded}@")
    if profile in ("", model):
        raise ModelNotFound(
            f"model {model[:120]!r} is not served; served are {loaded!r} and its profiles", param="model"
        )
    return profile


async def _profile(context: Context, model: str, name: str) -> ProfileAnswer:
    try:
        return await context.profile(name)
    except (ProfileNotFound, InvalidRequest) as error:
        raise ModelNotFound(f"model {model[:120]!r} is not served: {error.message}", param="model") from None


async def _plan(context: Context, model: str, steering: Steering | None, prompt: Prompt | None) -> SteeringPlan:
    """Resolves the steering of a request: a profile model applies its profile before the request's interventions."""
    profile = _profile_in(context, model)
    if profile is None:
        return await context.plan(steering, prompt)
    if isinstance(steering, ProfileSteering):
        raise InvalidRequest(
            "the model already names a profile; 'steering' may only list interventions", param="steering"
        )
    await _profile(context, model, profile)
    return await context.plan(ProfileSteering(profile=profile, interventions=tuple(steering or ())), prompt)


def _item(name: str, profile: ProfileAnswer | ProfileName | None) -> dict[str, Any]:
    item: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "steering-server"}
    if profile is not None:
        item |= {"profile": profile.name, "namespace": profile.namespace, "description": profile.description}
    return item


@dataclass(eq=False)
class GenerationWork(ABC):
    """The generations of one request, one for each prompt; each has `n` choices, which are numbered over all prompts.
    logprobs: the alternatives listed with the log-probability of each token; None without log-probabilities.
    warnings: what is reported in addition to the warnings of the plans and of the parts.
    form: how streams are written.
    parts: reads what the answers to a conversation think, say and call."""

    form: ClassVar[type[EventStream]] = EventStream

    context: Context
    body: OpenAIGeneration
    logprobs: int | None
    generations: list[Generation] = field(default_factory=list, init=False)
    warnings: list[str] = field(default_factory=list, init=False)
    parts: AnswerParts = field(default_factory=AnswerParts, init=False)

    def param(self, name: str) -> str:
        """Returns what the request calls a field of a generation, for errors."""
        return name

    @contextmanager
    def renaming(self) -> Iterator[None]:
        """Gives the fields that errors name their names in the request."""
        try:
            yield
        except SteeringError as error:
            error.param = error.param and self.param(error.param)
            raise

    def check(self) -> None:
        """Refuses what can be refused at once."""
        settings = self.context.settings
        self.context.check_sampling(self.sampling(), self.body.n or 1)
        check_limit(self.logprobs or 0, settings.max_top_logprobs, "alternatives", "logprobs")
        _profile_in(self.context, self.body.model)

    async def prepare_chat(
        self,
        messages: tuple[ChatMessage, ...],
        offer: Offer,
        max_tokens: int | None,
        thinking: ThinkingSwitch | None = None,
    ) -> None:
        """Does what `prepare` does for a conversation, the tools that its answers may call and whether they think. Raises
        UnsupportedParameter for what the model does not know."""
        self.check()
        engine = self.context.engine
        if offer.tools and self.body.grammar is not None:
            raise InvalidRequest("an answer that is held to a format cannot call tools", param="response_format")
        messages, tools = await offered(engine, messages, offer, thinking)
        self.warnings += [] if thinking is None else thinking.warnings
        if tools is not None:
            self.parts.tools = tools
            self.parts.control |= tools.form.control
            self.warnings += tools.warnings
        try:
            await self.prepare([messages], max_tokens)
        except InvalidRequest as error:
            if tools is None or tools.grammar is None or error.param != "guided_grammar":
                raise
            message = f"'tool_choice' cannot hold the answer to calls of these tools: {error.message}"
            raise type(error)(message, param="tools") from None
        form, request = thinking_format(engine), self.generations[0].request
        if (
            form is not None and request.sampling.grammar is None
        ):  # what must match a grammar from its first character never thinks
            tail = "".join(map(engine.tokenizer.token_text, cast("tuple[int, ...]", request.prompt)[-TAIL:]))
            self.parts.thinking = partial(form.parser, messages[-1], tail)
            self.parts.control |= form.control

    async def prepare(self, prompts: Sequence[Prompt], max_tokens: int | None) -> None:
        """Resolves the request. Everything that can be refused is refused here, and by `admit`. Without max_tokens an
        answer has what fits the context, up to `chat_max_tokens` and half of what its key has in a minute on this server."""
        self.check()
        context, settings, fields, n = self.context, self.context.settings, self.sampling(), self.body.n or 1
        check_limit(len(prompts), settings.max_prompts, "prompts", "prompt")
        plan = await _plan(context, self.body.model, self.body.steering, next(iter(prompts), None))
        default, minute = settings.chat_max_tokens, context.key.limits.tokens_per_minute
        if minute is not None:  # all that an answer may have counts
            default = min(default, max(1, share(minute, context.state.rate_limits.servers) // (2 * n)))
        options: dict[str, Any] = {"max_tokens": max_tokens, "default": default, "logprobs": self.logprobs}
        for prompt in prompts:
            request = await context.request(prompt, fields, plan, **options)
            if self.generations:  # the reported seed is that of the first, and repeats all
                seed = mix(self.generations[0].request.sampling.seed, len(self.generations) * n)
                request = replace(request, sampling=replace(request.sampling, seed=seed))
            self.generations.append(Generation(context, request, n, self.logprobs is not None))

    @property
    def cost(self) -> int:
        """The tokens that count against the limit of the key."""
        return sum(one.cost for one in self.generations)

    def sampling(self) -> SamplingFields:
        """Returns the sampling fields of the request. An answer is held to calls where the request says so."""
        fields, tools = self.body.sampling(), self.parts.tools
        return fields if tools is None else tools.held(fields)

    async def respond(self) -> Response:
        """Admits the request with the rows and tokens of all prompts, and answers it as a stream or as a whole."""
        self.context.admit(sum(one.n for one in self.generations), self.cost)
        if self.body.stream:
            return await event_stream(self.context.state, self.stream(), self.failure, self.form)
        answers = await self.run()
        return await json_in_thread(lambda: self.whole(answers))

    @abstractmethod
    def stream(self) -> AsyncGenerator[Event, None]:
        """Yields the events of a stream."""

    @abstractmethod
    def failure(self, error: SteeringError) -> tuple[Event, ...]:
        """Returns the events for a failure in a stream."""

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Describes the answers as a whole response."""

    async def run(self) -> list[Answer]:
        """Returns the answers of all choices when the last one has ended."""
        observed = self._observed()
        async with aclosing(self._events()) as arriving:
            async for choice, event in arriving:
                observed[choice].append(event)
        return list(map(assemble, observed))

    async def _events(self) -> AsyncGenerator[tuple[int, TokenEvent], None]:
        requests = [one for generation in self.generations for one in choices(generation.request, generation.n)]
        clock = TokenClock(self.context.state.metrics)
        streams = [stream_events(self.context.engine, request) for request in requests]
        async with aclosing(interleaved(streams)) as arriving:
            async for choice, event in arriving:
                if self.body.stream and event.token_id >= 0:
                    clock.observe(choice)
                yield choice, event

    def _observed(self) -> list[list[TokenEvent]]:
        return [[] for generation in self.generations for _ in range(generation.n)]

    def reasoning_tokens(self, answers: Sequence[Answer]) -> int:
        """Counts the tokens of the phase `thinking` in all answers, its markers included."""
        found, n = 0, len(answers) // len(self.generations)
        for index, answer in enumerate(answers):
            rules = self.generations[index // n].request.plan.phases
            if rules is not None and rules.thinking is not None:
                tracker = PhaseTracker(rules, self.context.engine.tokenizer.token_text)
                found += sum(tracker.add(one.token_id) == "thinking" for one in answer.events if one.token_id >= 0)
        return found

    def _extension(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns `seed` and `steering`, which OpenAI's API does not have; clients keep them as extra fields. The
        replay record is of the first prompt; there is none where nothing was generated that could be replayed."""
        reports = [answer.finish.steering for answer in answers]
        self.context.state.metrics.observe_dose(reports)
        first = self.generations[0]
        sampling, known = first.request.sampling, first.request.plan.warnings
        others = [note for one in self.generations for note in one.request.plan.warnings if note not in known]
        record = first.record if sampling.max_tokens else None
        warnings = tuple(dict.fromkeys([*others, *self.warnings, *self.parts.warnings]))
        applied = applied_steering(first.request.plan, reports, record, warnings)
        return {"seed": sampling.seed, "steering": applied.model_dump(mode="json", exclude_none=True)}


@dataclass(eq=False)
class OpenAIWork(GenerationWork):
    """A completion of OpenAI's API.
    created: when the request arrived, as Unix time."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    created: int = field(default_factory=lambda: int(time.time()), init=False)

    @abstractmethod
    def deltas(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        """Returns what the chunks of a stream say of an event of a choice. There is one at least where the event ends the choice."""

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Describes a whole answer."""

    def stop_reason(self, index: int) -> str:  # noqa: ARG002
        """Returns what `finish_reason` says of a choice that ended by itself, when all of it was read."""
        return "stop"

    def failure(self, error: SteeringError) -> tuple[Event, ...]:
        """See GenerationWork.failure."""
        return Event(body_of(error)), Event("[DONE]")

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """See GenerationWork.whole."""
        described = [
            {**self.choice(index, one), **_ending(one, self.stop_reason(index))} for index, one in enumerate(answers)
        ]
        return self._response(self._head(self.kind), described, answers)

    async def stream(self) -> AsyncGenerator[Event, None]:
        """Yields a chunk for each delta, the usage if requested, and [DONE]. The last delta of a choice says why it
        ended. The last chunk before [DONE] has what `_extension` returns."""
        head, with_usage = self._head(self.chunk_kind), self.body.include_usage
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        observed, finished = self._observed(), 0
        async with aclosing(self._events()) as arriving:
            async for index, event in arriving:
                observed[index].append(event)
                deltas = self.deltas(index, event)
                extension = {}
                if event.finish is not None:
                    finished += 1
                    deltas[-1] |= _ending(assemble(observed[index]), self.stop_reason(index))
                    if finished == len(observed) and not with_usage:
                        extension = await run_in_thread(self._extension, list(map(assemble, observed)))
                for delta in deltas:
                    yield Event({**head, "choices": [delta], **usage, **(extension if delta is deltas[-1] else {})})
        if with_usage:
            yield Event(await run_in_thread(lambda: self._response(head, [], list(map(assemble, observed)))))
        yield Event("[DONE]")

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": self.context.engine.info.fingerprint[:16],
        }

    def _response(
        self, head: dict[str, Any], described: Sequence[dict[str, Any]], answers: Sequence[Answer]
    ) -> dict[str, Any]:
        """Returns a response with the usage and steering of all answers, one to each prompt where only the prompts were scored."""
        usage = usage_of(answers, len(answers) // len(self.generations)).model_dump()
        usage["prompt_tokens_details"] = {"cached_tokens": usage.pop("cached_tokens")}
        usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens(answers)}
        return {**head, "choices": described, "usage": usage, **self._extension(answers)}

    def _text(self, token: int) -> str:
        return self.context.engine.tokenizer.token_text(token)

    def _bytes(self, token: int) -> bytes:
        return self.context.engine.tokenizer.token_bytes(token)


async def conversation_of(context: Context, body: ChatFields) -> tuple[ChatMessage, ...]:
    """Returns the messages that the model reads. Raises LimitExceeded, InvalidRequest."""
    if not (arguments := body.call_arguments):
        return body.conversation()
    tool_format_of(context.engine)
    context.admission.reserve(await run_in_thread(check_arguments, arguments, context.settings))
    return await run_in_thread(body.conversation)


def _ending(answer: Answer, stop: str) -> dict[str, Any]:
    """Returns why an answer ended, in OpenAI's terms, and its flags. stop: where it ended by itself."""
    reasons = {"stop": stop, "length": "length", "monitor": "content_filter"}
    return {"finish_reason": reasons[answer.finish.reason], **flags_of(answer)}


def flags_of(answer: Answer) -> dict[str, Any]:
    """Returns `flags`, the monitors that were raised; nothing where none was."""
    flags = [one.model_dump(mode="json", exclude_none=True) for one in raised_in(answer) or ()]
    return {"flags": flags} if flags else {}


@dataclass(eq=False)
class ChatWork(OpenAIWork):
    """A chat completion.

    begun: the choices whose role has been sent."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    body: ChatRequest
    begun: set[int] = field(default_factory=set, init=False)

    def param(self, name: str) -> str:
        """See GenerationWork.param."""
        limit = "max_tokens" if self.body.max_completion_tokens is None else "max_completion_tokens"
        return {"logprobs": "top_logprobs", "max_tokens": limit}.get(name, name)

    def stop_reason(self, index: int) -> str:
        """See OpenAIWork.stop_reason."""
        return "tool_calls" if self.parts.reader(index).calls else "stop"

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIWork.choice."""
        parts = self.parts.of_answer(index, answer)
        calls = [call_of(part) for part in parts if isinstance(part, Call)]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said(parts) or (None if calls else ""),
            "refusal": None,
        }
        if reasoning := thoughts(parts):
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {"index": index, "message": message, "logprobs": self._logprobs(answer.events)}

    def deltas(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        """Describes a role chunk for each choice, text chunks, and finish chunks."""
        found: list[dict[str, Any]] = []
        parts = self.parts.of_event(index, event)
        log = None if event.token_id < 0 else self._logprobs([event])
        for part in parts or ([] if log is None else [""]):
            found += _deltas_of(part)
        logs = [log, *[None] * len(found)]
        if event.finish is not None:
            found.append({})
        chunks = list(zip(found, logs, strict=False))
        if index not in self.begun:
            self.begun.add(index)
            chunks.insert(0, ({"role": "assistant", "content": "", "refusal": None}, None))
        return [{"index": index, "delta": one, "logprobs": log, "finish_reason": None} for one, log in chunks]

    def _logprobs(self, events: Sequence[TokenEvent]) -> dict[str, Any] | None:
        """Returns the log-probabilities of tokens, None where they were not requested."""
        if self.logprobs is None:
            return None

        def entry(token: int, logprob: float) -> dict[str, Any]:
            return {"token": self._text(token), "logprob": logprob, "bytes": list(self._bytes(token)) or None}

        content = [
            {**entry(event.token_id, event.logprob), "top_logprobs": [entry(*other) for other in event.top_logprobs]}
            for event in events
            if event.token_id >= 0 and event.logprob is not None
        ]
        return {"content": content, "refusal": None}


def call_of(call: Call) -> dict[str, Any]:
    """Describes a whole call of a tool."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _deltas_of(part: Part) -> list[dict[str, Any]]:
    """Returns the deltas of a part; of a call two, of which a client joins the arguments: its id and name, then the arguments."""
    if isinstance(part, str):
        return [{"content": part}]
    if isinstance(part, Thought):
        return [{"reasoning_content": part.text}]
    described = call_of(part)
    function = described["function"]
    begun = {"index": part.index, **described, "function": {**function, "arguments": ""}}
    arguments = {"index": part.index, "function": {"arguments": function["arguments"]}}
    return [{"tool_calls": [begun]}, {"tool_calls": [arguments]}]
