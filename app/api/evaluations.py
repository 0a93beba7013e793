"""POST /v1/evaluations: layer sweeps, dose-responses and deployment reports of a vector, their judges, and the operator's second model."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import httpx2
from fastapi import APIRouter, Query
from starlette.responses import Response

from app.api.context import AdmittedDep, Context
from app.api.jobs import Work, job_options, respond
from app.api.prompts import pair_text, tokenize
from app.api.reading import library_vectors
from app.api.vectors import vector_answer
from app.core.admission import check_limit
from app.core.components import open_engine
from app.core.process_settings import return_freed_memory
from app.core.requests import ApiRoute
from app.core.settings import Settings
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept, load_evaluation_prompts, load_neutral
from steering.concepts.measured import measurement_of
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest, NotNewest, UnsupportedParameter, VectorNotFound
from steering.lab import evaluations
from steering.lab import report as reports
from steering.lab.controls import plan_at
from steering.lab.evaluations import with_evidence
from steering.lab.judge import REPLY, EngineJudge, Judge, Judging, Unanswered, instruction_of
from steering.lab.report import CONTROLS, VARIATIONS, OtherModelScorer, other_model_scorer, plain_samples, report
from steering.lab.trials import Samples, read_back, trial_answers
from steering.operations import OPERATIONS
from steering.pairs import dataset_digest
from steering.plan.dose import DoseGuard
from steering.plan.layers import check_model, resolve_layers
from steering.plan.types import SteeringPlan
from steering.schemas.base import WaitQuery
from steering.schemas.evaluation import (
    DoseResponseAnswer,
    DoseResponseRequest,
    EvaluationAnswer,
    EvaluationRequest,
    ReportRequest,
    StrengthsRequest,
)
from steering.schemas.messages import Text
from steering.schemas.vectors import (
    VectorAnswer,
)
from steering.spec import InterventionSpec
from steering.spec_base import is_inline
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.extract import ExtractionRequest, extract
from steering.workflows.generate import Progress
from steering.workflows.texts import as_prompts, default_position

PROMPTS, NEUTRAL = 12, 8
MAX_READERS = 32
"""Vectors of the library along which the texts are also read."""
READING_DEPTH = 0.6
"""Share of the layers below the one at which a starter concept is read where it was not measured."""
MAX_REPLY_BYTES = 1 << 20
"""Bytes of a reply that are read."""
CACHE_MEGABYTES = 128
"""Key-value cache of the second model, which reads one text at a time."""

router = APIRouter(route_class=ApiRoute, tags=["vectors"])


@router.post("/v1/evaluations", **job_options(200, EvaluationAnswer, "the result"))
async def evaluate(body: EvaluationRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Steers many answers, reads them back unsteered, and reports effect, damage and chance level."""
    if isinstance(body, ReportRequest):
        work = await _prepare_report(context, body)
    else:
        work = await _prepare_strengths(context, body)
    return await respond(context, body.kind, body, work, query.wait, 200)


async def _prepare_strengths(context: Context, body: StrengthsRequest) -> Work:
    """Resolves the request and returns what runs it. Everything that can be refused at once is refused here, so that no job
    fails of it later."""
    context.limits.check_own_steering()
    vector = await context.vector(body.vector)
    context.limits.check_vector(vector)
    if isinstance(body, DoseResponseRequest):
        await _check_dose_response(context, body, vector)
    fields: dict[str, Any] = {
        **body.model_dump(include={"layers", "reading_layer", "scorer", "strengths"}, exclude_none=True),
        "vector": vector,
        "prompts": await _strengths_prompts(context, body),
        "reader": None if body.reader is None else await context.vector(body.reader, "reader"),
        "sampling": SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
    }
    engine, bound = context.engine, context.limits.max_relative_dose
    if bound is not None:
        fields["guard"] = DoseGuard(bound, "refuse")
    request: evaluations.DoseResponseRequest | evaluations.LayerSweepRequest
    work: Work
    if isinstance(body, DoseResponseRequest):
        neutral = None if body.neutral is None else await _tokenized(context, body.neutral, body.max_tokens, "neutral")
        request = evaluations.DoseResponseRequest(**fields, neutral=neutral, random_directions=body.random_directions)
        answers = await run_in_thread(evaluations.answers_to_write, engine, request)  # draws the random directions
        work = partial(_dose_response, context, body, request)
    else:
        request = evaluations.LayerSweepRequest(**fields)
        answers = await run_in_thread(evaluations.answers_to_write, engine, request)
        work = partial(_layer_sweep, context, request)
    check_limit(answers, context.settings.max_evaluation_answers, "answers to generate", "strengths")
    if bound is not None:
        await _check_dose(context, request)
    await context.charge_answers(request.prompts, answers, body.max_tokens)
    return work


async def _layer_sweep(context: Context, request: evaluations.LayerSweepRequest, progress: Progress) -> dict[str, Any]:
    """Runs a sweep. Cancelling stops it at once."""
    found = await evaluations.layer_sweep(context.engine, request, progress=progress)
    return found.model_dump(mode="json")


async def _dose_response(
    context: Context, body: DoseResponseRequest, request: evaluations.DoseResponseRequest, progress: Progress
) -> dict[str, Any]:
    """Runs a dose-response. Cancelling stops it at once and stores nothing."""
    engine, vector = context.engine, request.vector
    if body.judge is None:
        answer = await evaluations.dose_response(engine, request, progress=progress)
    else:
        concept = body.judge.concept or vector.description or vector.name
        async with opened_judge(context.settings, engine, body.judge.by) as judge:
            judging = Judging(judge, concept, body.judge.by, _instructions(context, body))
            answer = await evaluations.dose_response(engine, replace(request, judging=judging), progress=progress)
    saved, unsaved = await _save(context, vector, answer) if body.save else (None, ())
    warnings = (*answer.warnings, *(answer.judgement.warnings if answer.judgement else ()), *unsaved)
    return answer.model_copy(update={"saved": saved, "warnings": warnings}).model_dump(mode="json")


async def _save(
    context: Context, vector: ConceptVector, measured: DoseResponseAnswer
) -> tuple[VectorAnswer | None, Sequence[str]]:
    """Stores the evidence as the vector's next version, unless the vector has changed or was deleted meanwhile."""
    try:
        saved = await context.store.vectors.put(with_evidence(vector, measured), after=vector)
    except VectorNotFound:
        return None, (f"not saved: {vector.name} was deleted while {vector.id} was being measured",)
    except NotNewest as error:
        return None, (f"not saved: {error.message}, which was measured",)
    return vector_answer(saved), ()


async def _check_dose(
    context: Context, request: evaluations.DoseResponseRequest | evaluations.LayerSweepRequest
) -> None:
    """Raises DoseExceeded where the largest strength is beyond the dose that the policy and the key allow."""
    layers = resolve_layers(request.layers, request.vector, context.engine.info.layer_count)
    strength = max(request.strengths, key=abs)
    one_at_a_time = isinstance(request, evaluations.LayerSweepRequest)
    for place in [(layer,) for layer in layers] if one_at_a_time else [layers]:
        await plan_at(context.engine.info, request.vector, strength, place, request.guard)


async def _check_dose_response(context: Context, body: DoseResponseRequest, vector: ConceptVector) -> None:
    """Raises UnsupportedParameter for a judge that is not configured, InvalidRequest for a version that cannot be saved."""
    if body.judge is not None:
        check_judge(context.settings, body.judge.by)
    if body.save and (newest := await context.store.vectors.get(vector.name)).version != vector.version:
        raise InvalidRequest(
            f"'save' creates the next version from the newest, which is {newest.id}; got {vector.id}", param="save"
        )


async def _strengths_prompts(context: Context, body: StrengthsRequest) -> tuple[Prompt, ...] | None:
    """Returns prompts as the engine takes them. Raises LimitExceeded, ContextLengthExceeded, ConceptNotFound."""
    if body.concept is not None:
        return as_prompts(context.engine, await run_in_thread(load_evaluation_prompts, body.concept))
    if body.prompts is None:
        return None
    return await _tokenized(context, body.prompts, body.max_tokens, "prompts")


def _instructions(context: Context, body: StrengthsRequest) -> tuple[str, ...] | None:
    """Returns the caller's prompts as a judge reads them: without the markers of a chat template."""
    if body.prompts is None:
        return None
    return tuple(instruction_of(pair_text(text), context.engine.tokenizer) for text in body.prompts)


async def _tokenized(context: Context, texts: Sequence[Text], max_tokens: int, param: str) -> tuple[Prompt, ...]:
    check_limit(len(texts), context.settings.max_texts, "prompts", param)
    return tuple([(await tokenize(context.engine, pair_text(text), max_tokens)).token_ids for text in texts])


async def _prepare_report(context: Context, body: ReportRequest) -> Work:
    """Resolves the request and returns what runs it. Everything that can be refused at once is refused here, so that no job
    fails of it later."""
    engine = context.engine
    vector = await context.vector(body.vector)
    check_model(vector, engine.info)
    reader = None if body.reader is None else await context.vector(body.reader, "reader")
    await run_in_thread(read_back, engine, vector, reader, body.reading_layer, body.scorer)
    plan = await _report_plan(context, body, vector)
    own = await run_in_thread(_concept_of, vector)
    concept = body.concept or own
    known, others = await _readers(context, body)
    request = reports.ReportRequest(
        vector=vector,
        plan=plan,
        vectors=await _vectors_of(context, plan),
        prompts=await _report_prompts(context, body, concept),
        neutral=await _checked_prompts(context, body.neutral, body.max_tokens, "neutral")
        if body.neutral is not None
        else as_prompts(engine, load_neutral()[-NEUTRAL:]),
        direction=_direction(body, plan, vector),
        reader=reader,
        reading_layer=body.reading_layer,
        scorer=body.scorer,
        sampling=SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature),
        seeds=body.seeds,
        varied=body.varied,
        samples=body.samples,
        pairs=None if own is None else await run_in_thread(load_concept, own),
        readers=known,
        thresholds=body.thresholds,
    )
    check_limit(_report_answers(request), context.settings.max_evaluation_answers, "answers to generate", "prompts")
    await context.charge_answers(request.prompts, _report_answers(request), body.max_tokens)
    return partial(_run_report, context, request, others, concept)


def _report_answers(request: reports.ReportRequest) -> int:
    """Counts the answers that a report generates."""
    arms, count = 1 + CONTROLS + (request.pairs is not None), request.samples
    plain = trial_answers(arms, len(request.prompts), plain_samples(count))
    varied = trial_answers(1, min(request.varied, len(request.prompts)), Samples(count, count))
    return len(request.seeds) * (plain + len(request.neutral) + len(VARIATIONS) * varied)


async def _run_report(
    context: Context, request: reports.ReportRequest, others: Sequence[str], concept: str | None, progress: Progress
) -> dict[str, Any]:
    """Runs the report. Cancelling stops it at once.

    others: the starter concepts that are extracted first, to measure the side effects.
    concept: the starter concept from whose pairs a second model learns what to read. None: it is not known.
    """
    readers = dict(request.readers)
    for name in others:
        progress(0, 1, f"reading the pairs of {name}")
        readers[name] = await _extracted(context, name)
    async with opened_scorer(context.settings, concept) as scorer:
        work = replace(request, readers=readers, independent=scorer)
        return (await report(context.engine, work, progress=progress)).model_dump(mode="json")


async def _report_plan(context: Context, body: ReportRequest, vector: ConceptVector) -> SteeringPlan:
    if body.steering is not None:
        plan = await context.plan(body.steering)
        if not plan.own:
            raise InvalidRequest("the steering of a report must change something", param="steering")
        return plan
    context.limits.check_own_steering()
    strength = body.strength
    if strength is None:
        known = vector.recommended
        measured = None if known is None else known.strength or known.negative
        if measured is None:
            raise InvalidRequest(
                f"vector {vector.id} has no measured strength; give 'strength' or 'steering'", param="strength"
            )
        strength = max(measured, key=abs)
    if strength == 0.0:
        raise InvalidRequest("the strength of a report must not be 0", param="strength")
    return await context.resolve([InterventionSpec(vector=vector.id, strength=strength)])


def _direction(body: ReportRequest, plan: SteeringPlan, vector: ConceptVector) -> int:
    """Returns 1 or -1: the direction asked for, or the one in which the first intervention with the vector moves the score."""
    if body.direction is not None:
        return 1 if body.direction == "up" else -1
    item = next((one.spec for one in plan.interventions[: plan.own] if one.spec.vector == vector.id), None)
    if item is None:
        raise InvalidRequest(f"the steering does not use {vector.id}; give 'direction'", param="direction")
    sign = OPERATIONS[item.operation].sign(item)
    if sign is None:
        raise InvalidRequest(f"operation {item.operation!r} has no sign; give 'direction'", param="direction")
    return sign


async def _vectors_of(context: Context, plan: SteeringPlan) -> dict[str, ConceptVector]:
    if any(is_inline(name) for name in plan.vectors):
        raise InvalidRequest("a report needs stored vectors; register the inline directions first", param="steering")
    found = {name: await context.vector(name, "steering") for name in plan.vectors}
    for name, vector in found.items():
        if vector.sha256 != plan.vectors[name]:
            raise InvalidRequest(
                f"{name} of the profile belongs to another namespace; a report needs vectors of this one",
                param="steering",
            )
    return found


def _concept_of(vector: ConceptVector) -> str | None:
    """Returns the starter concept from whose pairs the vector was extracted."""
    dataset = vector.provenance.get("dataset")
    return next((name for name in CONCEPTS if dataset and dataset_digest(load_concept(name)) == dataset), None)


async def _report_prompts(context: Context, body: ReportRequest, concept: str | None) -> tuple[Prompt, ...]:
    if body.prompts is not None:
        return await _checked_prompts(context, body.prompts, body.max_tokens, "prompts")
    texts = load_neutral() if concept is None else await run_in_thread(load_evaluation_prompts, concept)
    return as_prompts(context.engine, texts[:PROMPTS])


async def _checked_prompts(context: Context, texts: Sequence[Text], max_tokens: int, param: str) -> tuple[Prompt, ...]:
    """Returns the caller's prompts. Raises LimitExceeded, ContextLengthExceeded."""
    check_limit(len(texts), context.settings.max_texts, "prompts", param)
    found = tuple(map(pair_text, texts))
    for text in found:
        await tokenize(context.engine, text, max_tokens)
    return found


async def _readers(context: Context, body: ReportRequest) -> tuple[dict[str, ConceptVector], tuple[str, ...]]:
    """Returns the stored vectors along which the texts are read, and the starter concepts that have to be extracted for that."""
    if body.side_effects is None:
        library = (await library_vectors(context))[0][:MAX_READERS]
        own = {vector.name: vector for vector in library}
        return own, tuple(name for name in CONCEPTS if name not in own)
    names = body.side_effects
    starters = tuple(name for name in dict.fromkeys(names) if name in CONCEPTS)
    known = {name: await context.vector(name, "side_effects") for name in names if name not in CONCEPTS}
    for vector in known.values():
        check_model(vector, context.engine.info)
    return known, starters


async def _extracted(context: Context, concept: str) -> ConceptVector:
    """Extracts a starter concept at the one layer where it is read."""
    info, pairs = context.engine.info, load_concept(concept)
    measured = measurement_of(concept, info.fingerprint)
    layer = round(READING_DEPTH * (info.layer_count - 1)) if measured is None else measured.reading_layer
    request = ExtractionRequest(concept, pairs, layers=(layer,), position=default_position(pairs), holdout=0.0)
    return await extract(context.engine, request)


class EndpointJudge:
    """Asks `POST {base_url}/chat/completions`. Redirects are not followed: they could lead to an address that the operator did not configure."""

    at_once = 8

    def __init__(self, http: httpx2.AsyncClient, url: str, model: str, api_key: str | None, seconds: float) -> None:
        self._http, self._url, self._model = http, f"{url.rstrip('/')}/chat/completions", model
        self._seconds = seconds
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    async def ask(self, question: str) -> str:
        """See Judge.ask. Tries once; failures are counted in the result."""
        messages = [{"role": "user", "content": question}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": REPLY}
        try:
            # the client's timeouts are per read, so a reply of single bytes would never end
            async with (
                asyncio.timeout(self._seconds),
                self._http.stream("POST", self._url, json=body, headers=self._headers) as response,
            ):
                if response.status_code != 200:
                    raise Unanswered(f"the judge answered {response.status_code}")
                content = bytearray()
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MAX_REPLY_BYTES:
                        raise Unanswered("the judge's reply is too long")
            reply = json.loads(content)["choices"][0]["message"]["content"]
        except (httpx2.HTTPError, TimeoutError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise Unanswered(f"the judge could not be asked: {type(error).__name__}") from error
        if not isinstance(reply, str):
            raise Unanswered("the judge's reply contains no text")
        return reply


def judges(settings: Settings) -> list[str]:
    """Lists the judges that an evaluation may name."""
    return ["self"] if settings.judge_base_url is None else ["self", "endpoint"]


def check_judge(settings: Settings, by: Literal["self", "endpoint"]) -> None:
    """Raises UnsupportedParameter for `endpoint` where none is configured."""
    if by not in judges(settings):
        raise UnsupportedParameter(
            "judge 'endpoint' is not configured on this server (STEERING_JUDGE_BASE_URL); 'self' uses the loaded model",
            param="judge",
        )


@asynccontextmanager
async def opened_judge(settings: Settings, engine: Engine, by: Literal["self", "endpoint"]) -> AsyncIterator[Judge]:
    """Opens the judge for one evaluation, one that `check_judge` allows."""
    if by == "self" or settings.judge_base_url is None or settings.judge_model is None:
        yield EngineJudge(engine)
        return
    timeout = httpx2.Timeout(settings.judge_seconds, connect=min(settings.judge_seconds, 10.0))
    async with httpx2.AsyncClient(timeout=timeout, follow_redirects=False) as http:
        yield EndpointJudge(
            http, settings.judge_base_url, settings.judge_model, settings.judge_api_key, settings.judge_seconds
        )


def check_second_model(settings: Settings) -> None:
    """Raises UnsupportedParameter where the operator configured none."""
    if settings.scorer_model is None:
        raise UnsupportedParameter(
            "this needs a second model, and the server has none: the operator sets STEERING_SCORER_MODEL"
        )


@asynccontextmanager
async def opened_second_model(
    settings: Settings, load: Callable[[Settings], Engine] = open_engine
) -> AsyncIterator[Engine]:
    """Yields the second model, which `check_second_model` has found configured. Raises what `load` raises.

    A cancelled caller waits for the end of the load, which cannot be stopped, so that what it returns is closed, and
    cancelled jobs do not load several at once.
    """
    second = settings.model_copy(
        update={
            "model": settings.scorer_model,
            "model_revision": None,
            "engine": "transformers",
            "compiled": False,
            "max_running": 1,
            "cache_megabytes": CACHE_MEGABYTES,
            "pretouch_megabytes": 0,
        }
    )
    loading = asyncio.ensure_future(run_in_thread(load, second))
    try:
        yield await asyncio.shield(loading)
    finally:
        await asyncio.wait({loading})
        if loading.exception() is None:
            await loading.result().close()
            await run_in_thread(return_freed_memory)


@asynccontextmanager
async def opened_scorer(settings: Settings, concept: str | None) -> AsyncIterator[OtherModelScorer | None]:
    """Yields the scorer of a starter concept; None where no second model is configured, or the concept is not known."""
    if settings.scorer_model is None or concept is None:
        yield None
        return
    async with opened_second_model(settings) as engine:
        yield await other_model_scorer(engine, concept, load_concept(concept))
