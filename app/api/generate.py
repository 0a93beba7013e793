"""POST /v1/generate and /v1/replay: answers a prompt n times, steered, as one response or as a stream of events; repeats an answer."""

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, cast

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from app.api.context import AdmittedDep, Context
from app.core.admission import check_limit
from app.core.answers import ALTERNATIVE_BYTES, Event, event_in_thread, event_stream, json_in_thread
from app.core.requests import ApiRoute, needs
from app.core.telemetry import TokenClock
from steering.engine.api import GenerationRequest, Prompt, SamplingParams, TokenEvent, Tokenizer
from steering.engine.prompts import phase_rules
from steering.errors import InvalidRequest, ModelNotFound, VectorNotFound
from steering.injection.readings import RaisedMonitor
from steering.injection.rows import SteeringReport
from steering.model.phases import PhaseTracker
from steering.operations import OPERATIONS
from steering.plan.types import HeldReadout, Intervention, SteeringPlan
from steering.schemas import steering as schemas
from steering.schemas.generation import Choice, FlagCondition, GenerateAnswer, GenerateRequest, RaisedFlag, Token, Usage
from steering.schemas.messages import StructuredFields
from steering.schemas.steering import RECORD_FORMAT, AppliedSteering, Record, ReplayRequest, by_layer
from steering.spec import (
    InlineVector,
    InterventionSpec,
    PhaseName,
    Role,
    SteeringSpec,
    is_inline,
    pinned,
    vector_names,
)
from steering.vectors import ConceptVector, VectorId, VectorsByName, VectorSource
from steering.workflows.generate import Answer, answers, assemble, choices, interleaved, means, stream_events

_GENERATE = needs("generate")
STREAMED: dict[str, Any] = {"openapi_extra": _GENERATE, "responses": {200: {"content": {"text/event-stream": {}}}}}
"""Options of a route that answers as a stream if asked."""

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post("/v1/generate", response_model=GenerateAnswer, **STREAMED)
async def generate(body: GenerateRequest, context: AdmittedDep) -> Response:
    """Answers a prompt: the text, the seed that repeats it, and the applied steering."""
    work = await prepare_generation(context, body)
    return await respond(context, work.n, work.cost, work.run, work.events() if body.stream else None)


@router.post("/v1/replay", response_model=GenerateAnswer, openapi_extra=_GENERATE)
async def replay(body: ReplayRequest, context: AdmittedDep) -> Response:
    """Repeats an answer. The body is `steering.record` of that answer, and its inline `directions` if it had any."""
    work = await _prepare_replay(context, body)
    return await respond(context, work.n, work.cost, work.run)


async def respond(
    context: Context,
    rows: int,
    cost: int,
    run: Callable[[], Awaitable[Callable[[], BaseModel]]],
    events: AsyncGenerator[Event, None] | None = None,
) -> Response:
    """Admits a request that has been checked and resolved, and answers it with the events given, or as a whole.
    rows: of the batch that it takes at once.
    cost: the tokens that count against the limit of the key: the prompts, and all that may be generated.
    run: returns, when the last answer has ended, what builds the response in a thread."""
    context.admit(rows, cost)
    if events is not None:
        return await event_stream(context.state, events)
    return await json_in_thread(await run(), exclude_none=True)


@dataclass(slots=True, eq=False)
class Generation:
    """A generation whose names are resolved, of `n` answers. Raises OutOfMemory or Overloaded where their lists of tokens do not fit.
    tokens: whether the response lists the tokens of each answer, whose memory is then reserved.
    warnings: what is reported in addition to the warnings of the plan.
    recorded: whether the response has the record."""

    context: Context
    request: GenerationRequest
    n: int
    tokens: bool
    flags: tuple[FlagCondition, ...] = ()
    warnings: tuple[str, ...] = ()
    recorded: bool = True

    def __post_init__(self) -> None:
        if self.tokens:
            self.context.admission.reserve(listed_bytes(self.request, self.n))

    @property
    def cost(self) -> int:
        """The tokens that count against the limit of the key."""
        return len(self.request.prompt) + self.n * self.request.sampling.max_tokens

    @property
    def record(self) -> Record:
        """The record that repeats these answers."""
        return record_of(self.context, self.request.prompt, self.request.sampling, self.request.plan, self.n)

    async def run(self) -> Callable[[], GenerateAnswer]:
        """Returns what builds the response, in a thread, when the last answer has ended."""
        found = await answers(self.context.engine, self.request, self.n)
        if self.flags:
            phases = phases_of(self.request.plan, self.context.engine.tokenizer)
            for index, answer in enumerate(found):
                for event in answer.events:
                    self._flagged(event, phases(index, event))
        return partial(self._answer, found)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields a `token` event for each token of every answer, then `done`. Closing it frees every row."""
        engine, observed = self.context.engine, [list[TokenEvent]() for _ in range(self.n)]
        clock, phases = TokenClock(self.context.state.metrics), phases_of(self.request.plan, engine.tokenizer)
        streams = [stream_events(engine, one) for one in choices(self.request, self.n)]
        async with aclosing(interleaved(streams)) as tokens:
            async for choice, event in tokens:
                if event.token_id >= 0:  # the last event may have no token
                    clock.observe(choice)
                observed[choice].append(event)
                if event.token_id >= 0 or event.text:
                    phase = phases(choice, event)
                    flags = self._flagged(event, phase)
                    yield Event(token_piece(event, choice, engine.tokenizer, flags=flags, phase=phase), "token")
        await asyncio.sleep(0)  # the last tokens of all streams are sent before any response is built
        yield await event_in_thread(partial(self._answer, tuple(map(assemble, observed))), "done")

    def _flagged(self, event: TokenEvent, phase: PhaseName | None) -> list[int] | None:
        """Counts the conditions that hold at a token and returns their indices, None where none does. The metric is
        labelled by the side of the bound only: a label with a name would be chosen by callers."""
        if not self.flags:
            return None
        found = [index for index, one in enumerate(self.flags) if _holds(one, event, phase)]
        for index in found:
            side = "below" if self.flags[index].above is None else "above"
            self.context.state.metrics.flagged_tokens.labels(side).inc()
        return found or None

    def _answer(self, found: tuple[Answer, ...]) -> GenerateAnswer:
        engine, plan = self.context.engine, self.request.plan
        reports = [one.finish.steering for one in found]
        self.context.state.metrics.observe_dose(reports)
        return GenerateAnswer(
            id=f"gen-{secrets.token_hex(12)}",
            model=engine.info.name,
            seed=self.request.sampling.seed,
            choices=choice_answers(found, engine.tokenizer, plan, tokens=self.tokens, flags=self.flags),
            usage=usage_of(found, self.n),
            steering=applied_steering(plan, reports, self.record if self.recorded else None, self.warnings),
        )


def _holds(condition: FlagCondition, event: TokenEvent, phase: PhaseName | None) -> bool:
    """Whether a condition holds at a token. phase: None where all of the answer is one."""
    score = event.readout.get(condition.vector)
    if score is None or (condition.phase is not None and (phase or "answer") not in condition.phase):
        return False
    if condition.above is not None:
        return score > condition.above
    return condition.below is not None and score < condition.below


def raised_in(
    answer: Answer, conditions: Sequence[FlagCondition] = (), phases: Sequence[PhaseName | None] = ()
) -> list[RaisedFlag] | None:
    """Returns the conditions and monitors that held somewhere in an answer, and where. None when the request has no
    conditions and no monitor was raised. phases: of the tokens, where there are conditions."""
    flags = []
    for condition in conditions:
        tokens = [
            event.index for event, phase in zip(answer.events, phases, strict=True) if _holds(condition, event, phase)
        ]
        if tokens:
            flags.append(RaisedFlag(**condition.model_dump(exclude_none=True), tokens=tokens))
    by_monitor: dict[str, list[tuple[int | None, RaisedMonitor]]] = {}
    for token, one in answer.raised:
        by_monitor.setdefault(one.monitor.name, []).append((token, one))
    for name, raised in by_monitor.items():
        monitor = raised[0][1].monitor
        flags.append(
            RaisedFlag(
                monitor=name,
                vector=monitor.vector,
                above=monitor.bound if monitor.above else None,
                below=None if monitor.above else monitor.bound,
                at=monitor.at,
                action=monitor.action,
                score=(max if monitor.above else min)(one.score for _, one in raised),
                tokens=[token for token, _ in raised if token is not None],
            )
        )
    return flags if flags or conditions else None


def check_generation(context: Context, body: GenerateRequest) -> None:
    """Raises LimitExceeded for what is beyond the operator's limits."""
    context.check_sampling(body, body.n)
    check_limit(len(body.flag), context.settings.max_readouts, "flags", "flag")


async def prepare_generation(context: Context, body: GenerateRequest, plan: SteeringPlan | None = None) -> Generation:
    """Resolves the request. Everything that can be refused is refused here, before any device work.
    plan: the plan of its steering, if that has been resolved already."""
    check_generation(context, body)
    prompt = context.prompt_of(body)
    if plan is None:
        plan = await context.plan(body.steering, prompt)
    readings = await context.readings(body.readout)
    readings += await context.readings([one.vector for one in body.flag if one.vector not in body.readout], "flag")
    by_phase = any(one.phase is not None for one in body.flag)
    request = await context.request(prompt, body, plan, readings, phases=by_phase)
    possible = frozenset[PhaseName]() if request.plan.phases is None else request.plan.phases.possible
    for index, one in enumerate(body.flag):
        if one.phase is not None and possible.isdisjoint(one.phase):
            raise InvalidRequest(
                f"flag {index} has phase {', '.join(one.phase)}: tokens of this request can be in {', '.join(sorted(possible))}",
                param="flag",
            )
    return Generation(context, request, body.n, body.lists_tokens, tuple(body.flag))


def listed_bytes(request: GenerationRequest, answers: int) -> int:
    """Returns the memory of the tokens of so many answers to a request, where a response lists them."""
    each = 1 + (request.sampling.logprobs or 0) + len(request.readings)
    return answers * request.sampling.max_tokens * each * ALTERNATIVE_BYTES


async def _prepare_replay(context: Context, record: ReplayRequest) -> Generation:
    """Returns the same generation again. Raises LimitExceeded beyond the operator's limits, ModelNotFound,
    VectorNotFound or InvalidRequest for what has changed."""
    if record.format > RECORD_FORMAT:  # its fields may mean something else
        raise InvalidRequest(
            f"the record was made by a later version, format {record.format}; this server reads up to {RECORD_FORMAT}",
            param="format",
        )
    context.check_sampling(record.sampling, record.n)
    context.limits.check_own_steering(listed=bool(record.interventions))
    _check_model(context, record.model)
    # a default is scaled down, and its record does not say that it was one; the fingerprint has the bound
    vectors = await _recorded_vectors(context, record)
    plan = await context.resolve(_with_directions(record), vectors, beyond="clamp")
    if record.format == RECORD_FORMAT:
        same = plan.fingerprint == record.fingerprint
    else:  # the fingerprints of earlier formats cannot be compared, but the policy can
        same = plan.spec.interventions[plan.own :] == record.mandatory
    if not same:
        raise InvalidRequest(
            "the recorded interventions resolve to another plan now: the policy or the dose guard has changed, or the record "
            "was edited",
            param="fingerprint",
        )
    if plan.needs_roles:
        if record.prompt_roles is None or len(record.prompt_roles) != len(record.prompt):
            raise InvalidRequest(
                "a scope has roles: 'prompt_roles' needs an entry for each token", param="prompt_roles"
            )
        plan = replace(plan, prompt_roles=record.prompt_roles)
    if plan.needs_phases:
        rules = phase_rules(context.engine.tokenizer, record.prompt, record.sampling.grammar, tools=bool(record.tools))
        if record.thinking is not None:
            rules = rules.starting(opened=record.thinking == "begun", may_begin=record.thinking == "possible")
        plan = replace(plan, phases=rules, stored=plan.own)  # what did not act then does not act now
    request = await context.request(record.prompt, record.sampling, plan)
    warnings, executor = _format_warnings(record), context.engine.stats().executor
    if record.model.executor not in (None, executor):
        warnings.append(
            f"recorded with executor {record.model.executor!r}, replayed with {executor!r}: tokens may differ"
        )
    return Generation(context, request, record.n, tokens=True, warnings=tuple(warnings))


def _format_warnings(record: Record) -> list[str]:
    """Warns of what a record of an earlier format does not tell, and of steering that has another meaning now."""
    if record.format == RECORD_FORMAT:
        return []
    warnings = [
        f"the record has format {record.format}, of an earlier version: whether the dose guard has changed since is not known"
    ]
    at_layer: dict[object, list[str]] = {}
    for item in (*record.interventions, *record.mandatory):
        for layer in item.layers if isinstance(item.layers, tuple) else (item.layers,):
            at_layer.setdefault(layer, []).append(item.operation)
    if any(len(operations) > 1 and set(operations) != {"add"} for operations in at_layer.values()):
        warnings.append(
            "several interventions act at one layer: each read what the ones before it had left when this was recorded; now "
            "all of them read the same residual, so tokens may differ"
        )
    return warnings


def _check_model(context: Context, recorded: schemas.RecordedModel) -> None:
    info, engine = context.engine.info, context.settings.engine
    if recorded.fingerprint != info.fingerprint:
        raise ModelNotFound(
            f"the record was made with model {recorded.name!r}; the loaded model is {info.name!r}", param="model"
        )
    if (recorded.dtype, recorded.engine) != (info.dtype, engine):
        raise InvalidRequest(
            f"the record was made in {recorded.dtype} by engine {recorded.engine!r}; this server computes in "
            f"{info.dtype} by {engine!r}, where tokens may differ",
            param="model",
        )


def _with_directions(record: ReplayRequest) -> tuple[InterventionSpec, ...]:
    """Returns the interventions with the inline directions of the replay. Raises VectorNotFound for one that it does not bring."""
    directions = {one.sha256: one for one in record.directions}
    spec, names = SteeringSpec(interventions=record.interventions), dict[str, str]()
    for name in vector_names(spec):
        names[name] = directions.get(record.vectors.get(name, ""), name) if is_inline(name) else name
        if is_inline(name) and not isinstance(names[name], InlineVector):
            raise VectorNotFound(
                f"the answer was given the direction {name}, which is not stored; bring it again in 'directions'",
                param="directions",
            )
    return pinned(spec, names).interventions


async def _recorded_vectors(context: Context, record: Record) -> VectorSource:
    """Returns the vectors with the recorded digests: those that the caller's namespace sees, else the shared ones, which a
    profile of `shared` means, also where the namespace has an own vector of that name. Raises VectorNotFound for a vector
    that was deleted, also where it was created again: its version has other content."""
    own, shared = context.store.vectors, context.state.store.shared.vectors
    recorded: dict[str, ConceptVector] = {}
    for name, sha256 in record.vectors.items():
        if is_inline(name):
            continue
        key = VectorId.parse(name, "vectors")
        seen = list[ConceptVector]()
        for source in (own, shared):
            with suppress(VectorNotFound):
                seen.append(await source.get(key.name, key.version))
                if seen[-1].sha256 == sha256:
                    recorded[name] = seen[-1]
                    break
        else:
            now = f"it is now {seen[0].sha256[:12]}…" if seen else "it does not exist"
            raise VectorNotFound(
                f"vector {key} no longer has the recorded digest {sha256[:12]}…; {now}", param="vectors"
            )
    return VectorsByName(recorded, own)


def record_of(context: Context, prompt: Prompt, sampling: SamplingParams, plan: SteeringPlan, n: int) -> Record:
    """Records everything the answers of a request depend on."""
    engine, info, phases = context.engine, context.engine.info, plan.phases if plan.needs_phases else None
    names = schemas.RecordedSampling.model_fields.keys() - StructuredFields.model_fields.keys()
    fields = {name: getattr(sampling, name) for name in names}
    fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.grammar is not None:
        fields |= sampling.grammar.fields
    thinking: schemas.RecordedThinking | None = None
    if phases is not None and phases.thinking is not None:
        thinking = "begun" if phases.opened else "possible" if phases.thinks else "none"
    return Record(
        format=RECORD_FORMAT,
        prompt=engine.tokenizer.encode(prompt),
        tools=True if phases is not None and phases.form else None,
        thinking=thinking,
        prompt_roles=cast("tuple[Role | None, ...] | None", plan.prompt_roles),
        sampling=schemas.RecordedSampling(**fields),
        n=n,
        interventions=plan.spec.interventions[: plan.own],
        mandatory=plan.spec.interventions[plan.own :],
        vectors=dict(plan.vectors),
        fingerprint=plan.fingerprint,
        model=schemas.RecordedModel(
            **{name: getattr(info, name) for name in ("name", "fingerprint", "dtype")},
            engine=context.settings.engine,
            executor=engine.stats().executor,
        ),
    )


def applied_steering(
    plan: SteeringPlan, reports: Sequence[SteeringReport], record: Record | None = None, warnings: Sequence[str] = ()
) -> AppliedSteering:
    """Reports the plan and what the engine measured: doses averaged over all answers, fired if it fired in any."""
    applied = [_applied(one, index, reports) for index, one in enumerate(plan.interventions)]
    notes = [*plan.warnings, *warnings]
    if clamped := sum(report.clamped for report in reports):
        notes.append(f"the dose guard scaled the change down {clamped} times, counted over tokens and layers")
    if plan.interventions and any(report.incomplete for report in reports):
        notes.append("memory was short: the reported doses, tokens and conditions may be incomplete")
    return AppliedSteering(
        fingerprint=plan.fingerprint,
        applied=applied[: plan.own],
        mandatory=applied[plan.own :] or None,
        relative_dose_total=fmean(report.total for report in reports) if reports else 0.0,
        warnings=notes,
        record=record,
    )


def _applied(one: Intervention, index: int, reports: Sequence[SteeringReport]) -> schemas.AppliedIntervention:
    """Reports one intervention as requested and as applied. Fields its operation does not use and defaults are left out."""

    def measured(name: str) -> list[Any]:
        return [getattr(report, name)[index] for report in reports if index < len(getattr(report, name))]

    spec, operation = one.spec, OPERATIONS[one.spec.operation]
    fields: dict[str, Any] = {"vector": spec.vector, "operation": spec.operation, "layers": list(one.layers)}
    if "degrees" not in operation.fields or spec.strength != 1.0:  # a rotation is by its degrees at strength 1
        fields["strength"] = spec.strength
    if operation.has_unit:
        fields["unit"] = spec.unit
    known = InterventionSpec.model_fields
    others = ((name, getattr(spec, name)) for name in known.keys() - {*fields, "strength", "unit"})
    fields |= {name: value for name, value in others if value != known[name].default}
    return schemas.AppliedIntervention(
        namespace=one.namespace or None,
        sha256=one.sha256,
        strengths=by_layer(one.strengths) if one.strengths else None,
        planned_dose=by_layer(one.planned_dose),
        relative_dose=by_layer(means(measured("doses"))),
        tokens=sum(measured("tokens")),
        fired=any(report.fired[index] for report in reports if index < len(report.fired)),
        fired_at=min((token for token in measured("fired_at") if token is not None), default=None),
        held=_held(measured("held")),
        condition_score=next((score for score in measured("condition_scores") if score is not None), None),
        **fields,
    )


def _held(found: Sequence[Mapping[int, HeldReadout]]) -> dict[str, schemas.HeldStrength] | None:
    """Averages what the controllers of one intervention did over all answers."""
    averages = {
        name: means([{layer: getattr(held, name) for layer, held in one.items()} for one in found])
        for name in ("score", "strength", "last_strength")
    }
    layers = averages["score"]
    held = {at: schemas.HeldStrength(**{name: each[at] for name, each in averages.items()}) for at in layers}
    return by_layer(held) or None


def phases_of(plan: SteeringPlan, tokenizer: Tokenizer) -> Callable[[Hashable, TokenEvent], PhaseName | None]:
    """Returns a function (answer, event) that says in which phase the next token of an answer is; None where answers have no phases,
    nobody asked, or the event has no token."""
    rules, trackers = plan.phases, dict[Hashable, PhaseTracker]()

    def phase(answer: Hashable, event: TokenEvent) -> PhaseName | None:
        if rules is None or rules.possible == {"prompt", "answer"} or event.token_id < 0:
            return None
        if answer not in trackers:
            trackers[answer] = PhaseTracker(rules, tokenizer.token_text)
        return trackers[answer].add(event.token_id)

    return phase


def token_fields(event: TokenEvent, tokenizer: Tokenizer, phase: PhaseName | None = None) -> dict[str, Any]:
    """Returns the measurements of one token; fields that were not requested are absent, non-finite numbers null."""
    fields: dict[str, Any] = {"text": event.text}
    if phase is not None:
        fields["phase"] = phase
    if event.logprob is not None:
        fields["logprob"] = _finite(event.logprob)
    if event.top_logprobs:
        fields["top_logprobs"] = [
            {"id": token, "text": tokenizer.token_text(token), "logprob": _finite(logprob)}
            for token, logprob in event.top_logprobs
        ]
    if event.readout:
        fields["readout"] = {name: _finite(score) for name, score in event.readout.items()}
    return fields


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def token_piece(
    event: TokenEvent,
    choice: int,
    tokenizer: Tokenizer,
    arm: str | None = None,
    flags: list[int] | None = None,
    phase: PhaseName | None = None,
) -> dict[str, Any]:
    """Returns the data of one `token` event, in the form of TokenPiece. A model would take three times as long for every token."""
    piece: dict[str, Any] = {} if arm is None else {"arm": arm}
    piece |= {"choice": choice, "index": event.index, **token_fields(event, tokenizer, phase)}
    if event.token_id >= 0:
        piece["id"] = event.token_id
    if flags is not None:
        piece["flags"] = flags
    if event.raised:
        piece["monitors"] = [one.monitor.name for one in event.raised]
    return piece


def choice_answers(
    found: Sequence[Answer],
    tokenizer: Tokenizer,
    plan: SteeringPlan,
    *,
    tokens: bool,
    flags: Sequence[FlagCondition] = (),
) -> list[Choice]:
    """Describes answers under a plan, with their tokens if they were requested."""
    phase = phases_of(plan, tokenizer)
    choices = []
    for index, one in enumerate(found):
        phases = [phase(index, event) for event in one.events] if tokens or flags else []
        listed = [
            Token(id=event.token_id, **token_fields(event, tokenizer, each))
            for event, each in zip(one.events if tokens else (), phases, strict=False)
        ]
        choices.append(
            Choice(
                index=index,
                text=one.text,
                finish_reason=one.finish.reason,
                tokens=listed if tokens else None,
                flags=raised_in(one, flags, phases),
            )
        )
    return choices


def usage_of(found: Sequence[Answer], n: int) -> Usage:
    """Counts the tokens of all answers, n to each prompt; a prompt is counted once."""
    prompts = [answer.finish for answer in found[::n]]
    prompt = sum(finish.prompt_tokens for finish in prompts)
    completion = sum(answer.finish.completion_tokens for answer in found)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_tokens=sum(finish.cached_tokens for finish in prompts),
    )
