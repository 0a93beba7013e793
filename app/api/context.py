"""Context: the server as one request may use it. Resolves the names of a request, checks it against all limits, tokenizes its texts, and
counts the rows, memory and tokens that it takes."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated, Literal

from fastapi import Depends, Query
from starlette.requests import Request

from app.api.limits import AllowedVectors, RequestLimits
from app.api.policy import DefaultSteering, GovernedEngine, Policy, not_applied
from app.core.admission import Admission, Key, check_limit
from app.core.settings import Settings
from app.core.state import ServerState, state_of
from app.core.telemetry import current_observer, current_request_id
from steering.concepts.loader import load_concept
from steering.engine.api import Engine, GenerationRequest, Prompt, SamplingParams
from steering.engine.capabilities import check_grammar
from steering.engine.prompts import check_context, encode_prompt, encode_steered
from steering.errors import InvalidRequest, ProfileNotFound, SteeringError, VectorNotFound
from steering.injection.readings import Reading
from steering.model.hook_points import only_residual
from steering.pairs import ChatMessage, ContrastivePair, PairSet, ToolMessage, asking, continued
from steering.pairs import Text as PairText
from steering.plan.resolve import check_model
from steering.plan.types import SteeringPlan
from steering.registry import suggestion
from steering.schemas.base import NamespaceName
from steering.schemas.extraction import Pair
from steering.schemas.messages import (
    ChoiceFields,
    ConversationFields,
    Message,
    SamplingFields,
    StructuredFields,
    Text,
    TextsFields,
)
from steering.schemas.resources import ProfileAnswer
from steering.schemas.steering import ProfileSteering, Steering
from steering.spec import InterventionSpec, SteeringSpec, in_answers, is_inline, vector_names
from steering.store.database import Writer
from steering.store.store import NamespaceStore
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId, VectorsByName, VectorSource
from steering.workflows.readout import reading_at
from steering.workflows.texts import capture_prompts

SUGGESTED_FROM = 200
"""Names among which the nearest to an unknown one is looked for."""
DEFAULT_MAX_TOKENS = 128
EAGER_HOOKS = "hook points inside blocks run in eager passes of their own, which are slower than the compiled passes of other requests"
_SEED_LIMIT = 2**53
"""Seeds chosen here stay below this, so that a JavaScript client reads them exactly."""
Namespace = Annotated[NamespaceName | None, Query(description="For admins: whose vectors, profiles and jobs.")]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """One request's caller, its rows and memory, the state of its server, and the namespace in which names are looked up.

    deadline: when its handler is cancelled, by time.monotonic.
    """

    state: ServerState
    key: Key
    admission: Admission
    namespace: str
    deadline: float

    @property
    def engine(self) -> Engine:
        """The engine, which reads texts for the caller's key. Raises NotReady, EngineDead."""
        engine = self.state.engine
        assert isinstance(engine, GovernedEngine), "every engine is governed once it is loaded"
        return engine.of_client(self.key.name)

    @property
    def settings(self) -> Settings:
        """The operator's settings."""
        return self.state.settings

    @property
    def store(self) -> NamespaceStore:
        """The store as the request sees it. Raises NotReady."""
        settings = self.settings
        writer = Writer(self.key.name, self.key.limits.storage_bytes, settings.max_links, settings.max_profiles)
        return self.state.store.in_namespace(self.namespace, writer)

    @property
    def limits(self) -> RequestLimits:
        """What the policy and the key allow this request to steer with. Raises PolicyInvalid."""
        return RequestLimits.of(self.state[Policy].active.spec.limits, self.key.limits)

    # names

    async def vector(self, text: str, param: str = "vector", version: int | None = None) -> ConceptVector:
        """Returns the vector `name@3`, or `name` with `?version=3`; without a version the newest. Raises VectorNotFound
        with the nearest name, InvalidRequest for no name and for two versions."""
        key = VectorId.parse(text, param)
        if key.version is not None and version is not None:
            raise InvalidRequest("give the version once: in the name or as ?version=", param="version")
        try:
            return await self.store.vectors.get(key.name, version if key.version is None else key.version)
        except VectorNotFound as error:
            raise await self.with_suggestion(error, key.name) from None

    async def with_suggestion(self, error: VectorNotFound, name: str) -> VectorNotFound:
        """Adds the nearest name among those this request may use."""
        names, limits = await self.store.vectors.names(SUGGESTED_FROM), self.limits
        known = [each for each in names if each != name and limits.may_have(each)]
        return VectorNotFound(error.message + suggestion(name, known), param=error.param)

    async def profile(self, name: str) -> ProfileAnswer:
        """Returns a profile. Raises ProfileNotFound with the nearest name."""
        try:
            return await self.store.profiles.get(name)
        except ProfileNotFound as error:
            known = await self.store.profiles.names(SUGGESTED_FROM)
            near = suggestion(name, [profile.name for profile in known])
            raise ProfileNotFound(error.message + near, param=error.param) from None

    async def model_vectors(self, names: Sequence[str], param: str) -> dict[str, ConceptVector]:
        """Returns vectors of the loaded model by the names given. Raises LimitExceeded, VectorModelMismatch."""
        check_limit(len(names), self.settings.max_readouts, param, param)
        vectors = {name: await self.vector(name, param) for name in dict.fromkeys(names)}
        for vector in vectors.values():
            check_model(vector, self.engine.info)
        return vectors

    async def readings(self, names: Sequence[str], param: str = "readout") -> tuple[Reading, ...]:
        """Returns live readouts of vectors, each at the middle of its recommended layers, in natural scales."""
        vectors = await self.model_vectors(names, param)
        return tuple(reading_at(name, vector, vector.recommended_layers()) for name, vector in vectors.items())

    # steering

    async def plan(self, steering: Steering | None, prompt: Prompt | None = None) -> SteeringPlan:
        """Resolves the steering of a request. Names are resolved once; the answer reports the versions used. Absent
        steering means the default. A profile's interventions come before the request's, those of the policy last.
        prompt: what will be answered, for `answers_only`."""
        answers = self.answers_only(prompt)
        if steering is None:
            plan = await self._default_plan(answers=answers)
            return replace(plan, stored=plan.own) if plan.own else plan
        if not isinstance(steering, ProfileSteering):
            self.limits.check_own_steering(listed=bool(steering))
            return await self.resolve(steering, answers=answers)
        self.limits.check_own_steering(profile=True, listed=bool(steering.interventions))
        profile = await self.profile(steering.profile)
        vectors = await self._vectors_of(profile, steering.interventions)
        plan = await self.resolve((*profile.interventions, *steering.interventions), vectors, answers=answers)
        return replace(plan, stored=len(profile.interventions))

    def answers_only(self, prompt: Prompt | None) -> bool:
        """Whether interventions without a scope act on answers alone: in a chat with tools, or of a model that thinks, unless the
        operator's settings say otherwise. prompt: what will be answered, if anything."""
        if not (self.settings.answers_only and prompt and isinstance(prompt[0], ChatMessage)):
            return False
        tools = any(isinstance(part, ToolMessage) and (part.tools or part.calls or part.call_id) for part in prompt)
        return tools or getattr(self.engine.tokenizer, "thinking_markers", None) is not None

    async def resolve(
        self,
        interventions: Sequence[InterventionSpec],
        vectors: VectorSource | None = None,
        *,
        answers: bool = False,
        beyond: Literal["clamp", "refuse"] = "refuse",
    ) -> SteeringPlan:
        """Checks interventions against all limits and resolves them for the loaded model, under the dose guard. Every
        route that takes steering calls this. The plan ends with the mandatory interventions of the policy.
        vectors: where names are looked up; by default in the namespace of the request. answers: whether those without a scope act
        on answers alone. beyond: what the limit of the policy or the key does to a larger planned dose."""
        check_limit(len(interventions), self.settings.max_interventions, "interventions", "steering")
        limits, spec = self.limits, SteeringSpec(interventions=tuple(interventions))
        spec = in_answers(spec) if answers else spec
        limits.check_spec(spec)
        source = AllowedVectors(self.store.vectors if vectors is None else vectors, limits)
        guard, mandatory = limits.guard(self.settings, beyond), self.state[Policy].active.mandatory
        try:
            return await self.state.plans.resolve(spec, source, self.engine.info, guard, mandatory)
        except VectorNotFound:
            for name in dict.fromkeys(name for name in vector_names(spec) if not is_inline(name)):
                await self.vector(name)  # raises again, with the nearest name
            raise

    async def _default_plan(self, *, answers: bool) -> SteeringPlan:
        """Returns the default steering and what is mandatory. Neither needs the database. A default that the policy or
        the limits of the key rule out is left out with a warning: the caller did not choose it."""
        default, policy = self.state[DefaultSteering].resolved_in(self.namespace), self.state[Policy].active
        guard, allowed = self.limits.guard(self.settings, "clamp"), policy.spec.limits.vectors
        pinned = in_answers(default.pinned) if answers else default.pinned
        as_resolved = guard == RequestLimits().guard(self.settings) and pinned == default.pinned
        if not policy.spec.mandatory and allowed is None and as_resolved:
            return default.plan
        plans, info = self.state.plans, self.engine.info
        try:
            limits = RequestLimits(shared_vectors=allowed)
            limits.check_spec(pinned)
            source = AllowedVectors(default.source, limits)
            plan = await plans.resolve(pinned, source, info, guard, policy.mandatory)
            warnings = () if default.plan.vectors else default.plan.warnings  # else they are those of the plan
        except SteeringError as error:
            plan = await plans.resolve(SteeringSpec(), default.source, info, guard, policy.mandatory)
            warnings = (not_applied(error),)
        return replace(plan, warnings=(*plan.warnings, *warnings)) if warnings else plan

    async def _vectors_of(self, profile: ProfileAnswer, added: Sequence[InterventionSpec]) -> VectorSource:
        """Returns where the names of a profile, which its own namespace sees, and of interventions added to it are
        looked up. Raises InvalidRequest where the request means another vector by the same name."""
        own = self.store.vectors
        if profile.namespace == self.namespace:
            return own
        theirs = self.state.store.in_namespace(profile.namespace).vectors
        names = set(vector_names(profile.steering))
        for name in names & set(vector_names(SteeringSpec(interventions=tuple(added)))):
            key = VectorId.parse(name)
            if (await own.get(key.name, key.version)).namespace != profile.namespace:
                raise InvalidRequest(
                    f"profile {profile.name!r} of namespace {profile.namespace!r} means its own vector {name!r}, the "
                    f"interventions added to it that of {self.namespace!r}; use one of them under another name",
                    param="steering",
                )
        return VectorsByName(dict.fromkeys(names, theirs), own)

    # prompts and texts

    def check_sampling(self, fields: SamplingFields, n: int) -> None:
        """Raises LimitExceeded for more answers, stop strings or alternatives than the operator allows."""
        settings, stops = self.settings, fields.stops
        check_limit(n, settings.max_n, "answers", "n")
        check_limit(len(stops), settings.max_stops, "stop strings", "stop")
        longest = max(map(len, stops), default=0)
        check_limit(longest, settings.max_stop_characters, "characters in a stop string", "stop")
        if isinstance(fields, ChoiceFields):
            check_limit(fields.top_logprobs or 0, settings.max_top_logprobs, "logprobs", "logprobs")

    def prompt_of(self, fields: ConversationFields) -> Prompt:
        """Returns the prompt of a request. Raises LimitExceeded for too many messages, InvalidRequest where the last one cannot be
        continued."""
        if fields.prompt is not None:
            return fields.prompt
        self.check_messages(fields.messages)
        messages = chat_messages(fields.messages or ())
        return continued(messages) if fields.continue_final_message else asking(messages)

    def check_messages(self, messages: Sequence[object] | None) -> None:
        """Raises LimitExceeded for more messages than the operator allows."""
        check_limit(len(messages or ()), self.settings.max_messages, "messages", "messages")

    def check_texts(self, fields: TextsFields) -> None:
        """Raises LimitExceeded for more texts or messages than the operator allows."""
        check_limit(len(fields.all_texts), self.settings.max_texts, "texts", "texts")
        self.check_messages(fields.messages)

    def check_activations(self, texts: int, layers: int, what: str, param: str) -> None:
        """Raises LimitExceeded when more numbers would be read from the model than the operator allows."""
        check_limit(texts * layers * self.engine.info.d_model, self.settings.max_activations, what, param)

    async def tokenize(self, prompt: Prompt, max_tokens: int) -> tuple[int, ...]:
        """Returns the token ids of a prompt that is answered. Raises ContextLengthExceeded."""
        ids = await encode_prompt(self.engine.tokenizer, prompt)
        check_context(len(ids), max_tokens, self.engine.info)
        return ids

    async def encode_texts(self, fields: TextsFields) -> list[tuple[int, ...]]:
        """Tokenizes every text in a thread. Raises ContextLengthExceeded."""
        param = "texts" if fields.texts is not None else "messages"
        return await encode_prompts(self.engine, list(map(pair_text, fields.all_texts)), param)

    async def request(
        self,
        prompt: Prompt,
        fields: SamplingFields,
        plan: SteeringPlan,
        readings: tuple[Reading, ...] = (),
        *,
        max_tokens: int | None = None,
        default: int = DEFAULT_MAX_TOKENS,
        logprobs: int | None = None,
        phases: bool = False,
    ) -> GenerationRequest:
        """Tokenizes a prompt and builds the request for the engine, with a seed where none was given. Without
        max_tokens the answer gets what fits the context and the cache, up to `default`. A grammar is compiled. phases: whether those of the answer
        are asked for by something else than a scope. Raises
        ContextLengthExceeded, UnsupportedParameter where the engine takes no grammar, InvalidRequest for one that does not
        compile, and where the plan asks for roles that the prompt does not have."""
        info, stats = self.engine.info, self.engine.stats()
        max_tokens = fields.max_tokens if max_tokens is None else max_tokens
        phases = phases or (isinstance(fields, ChoiceFields) and fields.lists_tokens)
        with _named(prompt):
            ids, plan = await encode_steered(self.engine.tokenizer, prompt, plan, fields.grammar, phases=phases)
            if max_tokens is None:
                room = min(info.context_length, stats.longest or info.context_length) - len(ids)
                max_tokens = max(1, min(default, room))
            check_context(len(ids), max_tokens, info)
        compiled = self.engine.name != "vllm" and stats.executor.startswith("compiled")
        if compiled and not only_residual(plan.layers):
            plan = replace(plan, warnings=(*plan.warnings, EAGER_HOOKS))
        if (grammar := fields.grammar) is not None:
            await check_grammar(self.engine, grammar)
        changed = {
            "max_tokens": max_tokens,
            "logit_bias": {int(token): bias for token, bias in fields.logit_bias.items()},
            "seed": fields.seed if fields.seed is not None else secrets.randbelow(_SEED_LIMIT),
            "stop": fields.stops,
            "logprobs": fields.top_logprobs if isinstance(fields, ChoiceFields) else logprobs,
            "grammar": grammar,
        }
        names = SamplingFields.model_fields.keys() - StructuredFields.model_fields.keys()
        sampling = SamplingParams(**{name: getattr(fields, name) for name in names} | changed)
        return GenerationRequest(
            ids,
            sampling,
            plan,
            readings,
            cache_salt=self.key.name,  # else `cached_tokens` would reveal how the prompts of others begin
            request_id=current_request_id(),
            observe=current_observer(),
        )

    # what it takes

    def admit(self, rows: int, tokens: int) -> None:
        """Takes the rows of a request and counts all its tokens. The last check before it runs: what is refused for
        another reason, a full batch above all, has used nothing. Raises Overloaded, LimitExceeded, RateLimited."""
        self.admission.take(rows)
        self.charge(tokens)

    def charge(self, tokens: int, memory: int = 0) -> None:
        """Reserves bytes of memory and counts tokens against the limit of the key. Raises OutOfMemory, Overloaded, RateLimited."""
        self.admission.reserve(memory)
        with self.charged(tokens):
            pass

    @contextmanager
    def charged(self, tokens: int) -> Iterator[None]:
        """Counts tokens against the limit of the key, unless what is done meanwhile fails. Raises RateLimited."""
        give_back = self.state.rate_limits.charge_tokens(self.key, tokens)
        try:
            yield
        except BaseException:
            give_back()
            raise
        self.state.metrics.key_tokens.labels(self.key.name).inc(tokens)

    async def answer_tokens(
        self,
        prompts: Sequence[Prompt] | None,
        answers: int,
        max_tokens: int,
        reads: Sequence[PairText] = (),
        *,
        more: int = 0,
    ) -> int:
        """Returns the tokens of a job: of its answers with their prompts where a caller gave them, as if each had a
        request of its own, and of texts that are read, as `capture_prompts` writes them. more: tokens that are counted already."""

        def lengths_of() -> list[int]:
            texts = [*(prompts or ()), *(one.prompt for one in capture_prompts(self.engine, reads))]
            return [len(self.engine.tokenizer.encode(one)) for one in texts]

        lengths = await run_in_thread(lengths_of)
        asked = lengths[: len(prompts)] if prompts else [0]
        read = sum(lengths[len(prompts or ()) :])
        return answers * max_tokens + ceil(answers * sum(asked) / len(asked)) + read + more


@contextmanager
def _named(prompt: Prompt) -> Iterator[None]:
    """Makes errors about a prompt that is a conversation name `messages`."""
    try:
        yield
    except InvalidRequest as error:
        if error.param == "prompt" and prompt and isinstance(prompt[0], ChatMessage):
            error.param = "messages"
        raise


def pair_text(text: Text) -> PairText:
    """Converts a text of a request, plain or a conversation, to the library's type."""
    return text if isinstance(text, str) else chat_messages(text)


def chat_messages(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Converts a conversation of a request to the library's type."""
    return tuple(ChatMessage(one.role, one.content) for one in messages)


def pair_set(concept: str | None, pairs: Sequence[Pair] | None) -> PairSet:
    """Returns the pairs of a starter concept, or those that a caller gave. Raises ConceptNotFound."""
    if concept is not None:
        return load_concept(concept)
    if pairs is None:
        raise InvalidRequest("no texts given", param="pairs")
    return PairSet.of([ContrastivePair(pair_text(p.positive), pair_text(p.negative), p.topic) for p in pairs])


async def encode_prompts(engine: Engine, prompts: Sequence[Prompt], param: str) -> list[tuple[int, ...]]:
    """Tokenizes texts, conversations and token ids in a thread. Raises ContextLengthExceeded, InvalidRequest naming `param`."""
    try:
        found = await run_in_thread(lambda: [engine.tokenizer.encode(prompt) for prompt in prompts])
    except InvalidRequest as error:
        raise type(error)(error.message, param=param) from None
    for ids in found:
        check_context(len(ids), 0, engine.info, param=param)
    return found


async def _context(request: Request, namespace: Namespace = None) -> Context:
    """Returns the server as this request may use it. Raises InsufficientScope for the namespace of others."""
    key: Key = request.state.key
    deadline: float = request.state.deadline
    return Context(state_of(request), key, request.state.admission, key.namespace_for(namespace), deadline)


async def _admitted(request: Request, namespace: Namespace = None) -> Context:
    """Takes one row at once, or raises Overloaded. RequestMiddleware returns all rows when the response has been sent."""
    context = await _context(request, namespace)
    context.admission.take(1)
    return context


ContextDep = Annotated[Context, Depends(_context)]
AdmittedDep = Annotated[Context, Depends(_admitted)]
"""The context of a request that uses the engine."""
