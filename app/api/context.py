"""Context: the server as one request may use it, and the resolution of names in requests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request

from app.api.default_steering import DefaultSteering
from app.api.limits import AllowedVectors, RequestLimits
from app.api.policy import Policy
from app.api.vector_sources import VectorsByName
from app.core.admission import Admission, check_limit
from app.core.key import Key
from app.core.logs import current_request_id
from app.core.settings import Settings
from app.core.state import ServerState, state_of
from app.core.tracing import current_observer
from steering.engine.api import Engine, GenerationRequest, Prompt, SamplingParams
from steering.errors import InvalidRequest, ProfileNotFound, SteeringError, VectorNotFound
from steering.injection.readings import Reading
from steering.plan.layers import check_model
from steering.plan.types import SteeringPlan
from steering.registry import suggestion
from steering.schemas.base import NamespaceName
from steering.schemas.resources import ProfileAnswer
from steering.schemas.steering import ProfileSteering, Steering
from steering.spec import InterventionSpec, SteeringSpec, vector_names
from steering.spec_base import is_inline
from steering.store.records import Writer
from steering.store.store import NamespaceStore
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId, VectorSource
from steering.workflows.readout import reading_at

SUGGESTED_FROM = 200
"""Names among which the nearest to an unknown one is looked for."""
Namespace = Annotated[NamespaceName | None, Query(description="For admins: whose vectors, profiles and jobs.")]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """One request's caller, its rows and memory, the state of its server, and the namespace in which names are looked up."""

    state: ServerState
    key: Key
    admission: Admission
    namespace: str

    @property
    def engine(self) -> Engine:
        """The engine. Raises NotReady, EngineDead."""
        return self.state.engine

    @property
    def store(self) -> NamespaceStore:
        """The store as the request sees it. Raises NotReady."""
        settings = self.settings
        writer = Writer(self.key.name, self.key.limits.storage_bytes, settings.max_links, settings.max_profiles)
        return self.state.store.in_namespace(self.namespace, writer)

    @property
    def settings(self) -> Settings:
        """The operator's settings."""
        return self.state.settings

    async def vector(self, text: str, param: str = "vector", version: int | None = None) -> ConceptVector:
        """Returns the vector `name@3`, or `name` with `?version=3`; without a version the newest.

        Raises VectorNotFound, or InvalidRequest for what is not a name and where the version is given twice.
        """
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

    async def model_vectors(self, names: Sequence[str], param: str) -> dict[str, ConceptVector]:
        """Returns vectors of the loaded model by the names given. Raises LimitExceeded, VectorModelMismatch."""
        check_limit(len(names), self.settings.max_readouts, param, param)
        found = {name: await self.vector(name, param) for name in dict.fromkeys(names)}
        for vector in found.values():
            check_model(vector, self.engine.info)
        return found

    async def readings(self, names: Sequence[str], param: str = "readout") -> tuple[Reading, ...]:
        """Returns live readouts of vectors, each at the middle of its recommended layers, in natural scales."""
        vectors = await self.model_vectors(names, param)
        return tuple(reading_at(name, vector, vector.recommended_layers()) for name, vector in vectors.items())

    @property
    def limits(self) -> RequestLimits:
        """What the policy and the key allow this request to steer with. Raises PolicyInvalid."""
        return RequestLimits.of(self.state[Policy].active.spec.limits, self.key.limits)

    async def plan(self, steering: Steering | None) -> SteeringPlan:
        """Resolves the steering of a request. Names are resolved once; the answer reports the versions used.

        Absent steering means the default. A profile's interventions come before the request's, those of the policy last.
        """
        if steering is None:
            return await self._default_plan()
        if not isinstance(steering, ProfileSteering):
            self.limits.check_own_steering(listed=bool(steering))
            return await self.resolve(steering)
        self.limits.check_own_steering(profile=True, listed=bool(steering.interventions))
        profile = await self.profile(steering.profile)
        vectors = await self._vectors_of(profile, steering.interventions)
        return await self.resolve((*profile.steering.interventions, *steering.interventions), vectors)

    async def resolve(
        self, interventions: Sequence[InterventionSpec], vectors: VectorSource | None = None
    ) -> SteeringPlan:
        """Checks interventions against all limits and resolves them for the loaded model, under the dose guard.

        Every route that takes steering calls this, also replay, profiles and the default. The plan ends with the mandatory
        interventions of the policy.

        vectors: where names are looked up. By default this is the namespace of the request.
        """
        check_limit(len(interventions), self.settings.max_interventions, "interventions", "steering")
        limits = self.limits
        spec = SteeringSpec(interventions=tuple(interventions))
        limits.check_names(vector_names(spec))
        guard = limits.guard(self.settings)
        mandatory = self.state[Policy].active.mandatory
        try:
            source = AllowedVectors(self.store.vectors if vectors is None else vectors, limits)
            return await self.state.plans.resolve(spec, source, self.engine.info, guard, mandatory)
        except VectorNotFound:
            for name in dict.fromkeys(name for name in vector_names(spec) if not is_inline(name)):
                await self.vector(name)  # raises again, with the nearest name
            raise

    async def _default_plan(self) -> SteeringPlan:
        """Returns the default steering and what is mandatory. Neither needs the database.

        A default that the policy or the limits of the key rule out is left out with a warning: the caller did not choose it.
        """
        default, policy = self.state[DefaultSteering].resolved_in(self.namespace), self.state[Policy].active
        guard = self.limits.guard(self.settings, "clamp")
        unchanged = not policy.spec.mandatory and guard == RequestLimits().guard(self.settings)
        if unchanged and policy.spec.limits.vectors is None:
            return default.plan
        plans, info = self.state.plans, self.engine.info
        try:
            source = AllowedVectors(default.source, RequestLimits(shared_vectors=policy.spec.limits.vectors))
            plan = await plans.resolve(default.pinned, source, info, guard, policy.mandatory)
            return plan if default.vectors else replace(plan, warnings=(*plan.warnings, *default.plan.warnings))
        except SteeringError as error:
            plan = await plans.resolve(SteeringSpec(), default.source, info, guard, policy.mandatory)
            return replace(plan, warnings=(*plan.warnings, f"the default steering is not applied: {error.message}"))

    def request(
        self, prompt: Prompt, sampling: SamplingParams, plan: SteeringPlan, readings: tuple[Reading, ...] = ()
    ) -> GenerationRequest:
        """Builds a request for the engine."""
        return GenerationRequest(
            prompt,
            sampling,
            plan,
            readings,
            cache_salt=self.key.name,  # else `cached_tokens` would reveal how the prompts of others begin
            request_id=current_request_id(),
            observe=current_observer(),
        )

    def admit(self, rows: int, tokens: int) -> None:
        """Takes the rows of a request and counts all its tokens. The last check before it runs: what is refused for another
        reason, a full batch above all, has used nothing. Raises Overloaded, LimitExceeded, RateLimited."""
        self.admission.take(rows)
        self.charge_tokens(tokens)

    async def charge_answers(
        self, prompts: Sequence[Prompt] | None, answers: int, max_tokens: int, reads: Sequence[Prompt] = ()
    ) -> None:
        """Counts the tokens of answers to be generated for a job, and of their prompts where a caller gave them, as if each had a
        request of its own; and of texts that are read. Raises RateLimited."""
        texts = [*(prompts or ()), *reads]
        lengths = await run_in_thread(lambda: [len(self.engine.tokenizer.encode(one)) for one in texts])
        asked = lengths[: len(prompts)] if prompts else [0]
        self.charge_tokens(
            answers * max_tokens + ceil(answers * sum(asked) / len(asked)) + sum(lengths[len(prompts or ()) :])
        )

    def charge_tokens(self, tokens: int) -> None:
        """Counts tokens against the limit of the key. Raises RateLimited."""
        self.state.rate_limits.charge_tokens(self.key, tokens)
        self.state.metrics.key_tokens.labels(self.key.name).inc(tokens)

    async def _vectors_of(self, profile: ProfileAnswer, added: Sequence[InterventionSpec]) -> VectorSource:
        """Returns where the names of a profile and of interventions added to it are looked up.

        A profile means the vectors that its own namespace sees. Raises InvalidRequest where the request means another
        vector by the same name.
        """
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

    async def profile(self, name: str) -> ProfileAnswer:
        """Returns a profile. Raises ProfileNotFound with the nearest name."""
        try:
            return await self.store.profiles.get(name)
        except ProfileNotFound as error:
            known = await self.store.profiles.names(SUGGESTED_FROM)
            near = suggestion(name, [profile.name for profile in known])
            raise ProfileNotFound(error.message + near, param=error.param) from None


async def _context(request: Request, namespace: Namespace = None) -> Context:
    """Returns the server as this request may use it. Raises InsufficientScope for the namespace of others."""
    key: Key = request.state.key
    return Context(state_of(request), key, request.state.admission, key.namespace_for(namespace))


async def _admitted(request: Request, namespace: Namespace = None) -> Context:
    """Takes one row at once, or raises Overloaded. RequestMiddleware returns all rows when the response has been sent."""
    context = await _context(request, namespace)
    context.admission.take(1)
    return context


ContextDep = Annotated[Context, Depends(_context)]


AdmittedDep = Annotated[Context, Depends(_admitted)]
"""The context of a request that uses the engine."""
