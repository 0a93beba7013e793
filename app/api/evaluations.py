"""POST /v1/evaluations and /v1/vectors/transfer: long work over the engine that measures a vector (layer sweeps, dose-responses, deployment
reports) or carries it over from the operator's second model, and the judges of answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import httpx2
import torch
from fastapi import APIRouter, Query
from pydantic_core import to_jsonable_python
from starlette.responses import Response

from app.api.choices import prepare_choices
from app.api.context import AdmittedDep, Context, encode_prompts, pair_set, pair_text
from app.api.jobs import Prepared, checkpoints_of, job_options, respond, written
from app.api.reading import library_vectors
from app.api.second_model import SecondModel
from app.api.vectors import vector_answer
from app.core.admission import check_limit
from app.core.requests import ApiRoute, UploadRoute
from app.core.settings import Settings
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept, load_evaluation_prompts, load_neutral, load_report_prompts
from steering.concepts.measured import measurement_of
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.engine.capabilities import reading_passes
from steering.engine.prompts import check_context
from steering.errors import DoseExceeded, InvalidRequest, NotNewest, UnsupportedParameter, VectorNotFound
from steering.lab import calibration as calibrating
from steering.lab import evaluations, layer_sweep
from steering.lab import report as reports
from steering.lab import transfer as carrying
from steering.lab.controls import plan_at
from steering.lab.judge import ASPECTS, REPLY, EngineJudge, Judge, Judging, Unanswered, instruction_of
from steering.lab.report import OtherModelScorer, other_model_scorer
from steering.lab.trials import Samples, evaluation_prompts, read_back, trial_answers
from steering.operations import OPERATIONS
from steering.pairs import asking, dataset_digest
from steering.plan.resolve import check_model, resolve_layers
from steering.plan.types import DoseGuard, SteeringPlan
from steering.schemas import evaluation as schemas
from steering.schemas.base import WaitQuery
from steering.schemas.choices import ChoicesRequest
from steering.schemas.extraction import TransferAnswer, TransferRequest
from steering.schemas.messages import Text
from steering.schemas.vectors import VectorAnswer
from steering.spec import InterventionSpec, is_inline
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.extract import ExtractionRequest, extract, tried_layers
from steering.workflows.generate import Progress
from steering.workflows.texts import as_prompts, capture_prompts, default_position

OWN, NEUTRAL = slice(16, 40), 8
"""Neutral prompts on which a vector without a concept is judged, none of which a dose-response or a layer sweep takes, and how many
of the last ones show the damage."""
MAX_READERS = 32
"""Vectors of the library along which the texts are also read."""
READING_DEPTH = 0.6
"""Share of the layers below the one at which a starter concept is read where it was not measured."""
MAX_REPLY_BYTES = 1 << 20
"""Bytes of a judge's reply that are read."""

router = APIRouter(route_class=ApiRoute, tags=["vectors"])
uploads = APIRouter(route_class=UploadRoute, tags=["vectors"])


@router.post("/v1/evaluations", **job_options(200, schemas.EvaluationAnswer, "the result"))
async def evaluate(
    body: schemas.EvaluationRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep
) -> Response:
    """Steers many answers, reads them back unsteered, and reports effect, damage and chance level; or answers multiple choice."""
    if isinstance(body, schemas.ReportRequest):
        job = await _prepare_report(context, body)
    elif isinstance(body, ChoicesRequest):
        job = await prepare_choices(context, body)
    elif isinstance(body, schemas.CalibrationRequest):
        job = await _prepare_calibration(context, body)
    else:
        job = await _prepare_strengths(context, body)
    return await respond(context, body.kind, body, job, query.wait, 200)


@uploads.post("/v1/vectors/transfer", **job_options(201, TransferAnswer, "the vector and its loss"))
async def transfer(body: TransferRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Carries a direction of the second model to the loaded one by a map that is fitted on texts both read, and measures the loss."""
    job = await _prepare_transfer(context, body)
    return await respond(context, "transfer", body, job, query.wait, 201)


# Layer sweeps and dose-responses. Everything that can be refused at once is refused before the job begins, here as below.


async def _prepare_strengths(context: Context, body: schemas.StrengthsRequest) -> Prepared:
    context.limits.check_own_steering()
    vector = await context.vector(body.vector)
    context.limits.check_vector(vector)
    if isinstance(body, schemas.DoseResponseRequest):
        if body.judge is not None and body.judge.by not in judges(context.settings):
            raise UnsupportedParameter(
                "judge 'endpoint' is not configured on this server (STEERING_JUDGE_BASE_URL); 'self' uses the loaded model",
                param="judge",
            )
        if body.save:
            await _check_newest(context, vector)
    prompts: tuple[Prompt, ...] | None = None
    if body.concept is not None:
        prompts = as_prompts(context.engine, await run_in_thread(load_evaluation_prompts, body.concept))
    elif body.prompts is not None:
        _, prompts = await _prompts(context, body.prompts, body.max_tokens, "prompts")
    fields: dict[str, Any] = {
        **body.model_dump(include={"layers", "reading_layer", "scorer", "strengths"}, exclude_none=True),
        "vector": vector,
        "prompts": prompts,
        "reader": None if body.reader is None else await context.vector(body.reader, "reader"),
        "sampling": SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
        "checkpoints": checkpoints_of(context),
        "neutral": None,
    }
    if body.neutral is not None:
        _, fields["neutral"] = await _prompts(context, body.neutral, body.max_tokens, "neutral")
    engine, bound = context.engine, context.limits.max_relative_dose
    if bound is not None:
        fields["guard"] = DoseGuard(bound, "refuse")
    request: evaluations.DoseResponseRequest | layer_sweep.LayerSweepRequest
    ratings = judged = 0
    if isinstance(body, schemas.DoseResponseRequest):
        request = evaluations.DoseResponseRequest(**fields, random_directions=body.random_directions)
        setup = await run_in_thread(evaluations.resolved, engine, request)  # draws the random directions
        places = [(vector, setup.layers)]
        answers, strengths = setup.answers + setup.reads, setup.strengths
        ratings, judged = await _judged(context, body, vector, setup)
    else:
        others = [await context.vector(name, "vectors") for name in body.vectors]
        for other in others:
            context.limits.check_vector(other)
            check_model(other, engine.info)
        fields |= {"vectors": tuple(others), "operations": body.operations, "unit": body.unit}
        request = layer_sweep.LayerSweepRequest(**fields)
        sweep = await run_in_thread(layer_sweep.resolved, engine, request)
        places = [(place.vector, (place.layer,)) for place in sweep.places] if body.unit == "scale" else []
        answers, strengths = sweep.answers + sweep.reads(request), sweep.strengths
    check_limit(answers + ratings, context.settings.max_evaluation_answers, "answers to generate and read", "strengths")
    if bound is not None:  # raises DoseExceeded where the largest strength is beyond it
        for one, layers in places:
            await plan_at(engine.info, one, max(strengths, key=abs), layers, request.guard)
    tokens = await context.answer_tokens(request.prompts, answers, body.max_tokens, more=judged)
    return tokens, partial(_run_strengths, context, body, request)


async def _judged(
    context: Context, body: schemas.DoseResponseRequest, vector: ConceptVector, setup: evaluations.Setup
) -> tuple[int, int]:
    """Returns how many ratings the loaded model gives as a judge, and their tokens with those of the questions."""
    if body.judge is None or body.judge.by != "self":
        return 0, 0
    judge, answers = EngineJudge(context.engine), len(setup.strengths) + 1  # to each prompt
    concept, given = _asked(context.engine, body, body.judge, vector)
    asked = given or [instruction_of(one, context.engine.tokenizer) for one in setup.prompts]
    tokens = await run_in_thread(judge.tokens, concept, asked, body.max_tokens)
    return len(ASPECTS) * len(asked) * answers, answers * tokens


def _asked(
    engine: Engine, body: schemas.DoseResponseRequest, judge: schemas.JudgeRequest, vector: ConceptVector
) -> tuple[str, tuple[str, ...] | None]:
    """Returns the concept, and the caller's prompts as a judge reads them: without the markers of a chat template."""
    asked = tuple(instruction_of(pair_text(one), engine.tokenizer) for one in body.prompts or ())
    return judge.concept or vector.description or vector.name, asked or None


async def _run_strengths(
    context: Context,
    body: schemas.StrengthsRequest,
    request: evaluations.DoseResponseRequest | layer_sweep.LayerSweepRequest,
    progress: Progress,
) -> dict[str, Any]:
    """Runs a sweep or a dose-response. Cancelling stops it at once and stores nothing."""
    engine, vector = context.engine, request.vector
    if isinstance(request, layer_sweep.LayerSweepRequest):
        return (await layer_sweep.layer_sweep(engine, request, progress=progress)).model_dump(mode="json")
    assert isinstance(body, schemas.DoseResponseRequest)
    if body.judge is None:
        answer = await evaluations.dose_response(engine, request, progress=progress)
    else:
        concept, asked = _asked(engine, body, body.judge, vector)
        async with _opened_judge(context.settings, engine, body.judge.by) as judge:
            judging = Judging(judge, concept, body.judge.by, asked)
            answer = await evaluations.dose_response(engine, replace(request, judging=judging), progress=progress)
    proved = evaluations.with_evidence(vector, answer)
    saved, unsaved = await _save(context, vector, proved) if body.save else (None, ())
    warnings = (*answer.warnings, *(answer.judgement.warnings if answer.judgement else ()), *unsaved)
    return answer.model_copy(update={"saved": saved, "warnings": warnings}).model_dump(mode="json")


async def _prepare_calibration(context: Context, body: schemas.CalibrationRequest) -> Prepared:
    context.limits.check_own_steering()
    vector, engine = await context.vector(body.vector), context.engine
    context.limits.check_vector(vector)
    check_model(vector, engine.info)
    if body.save:
        if body.operation != "add":
            raise InvalidRequest(
                "'save' stores the strengths of unit 'kl', which are those of operation 'add'", param="save"
            )
        await _check_newest(context, vector)
    layers = resolve_layers(body.layers, vector, engine.info.layer_count)
    if body.operation == "apply":
        for layer in layers:  # raises InvalidRequest for one without a map
            await calibrating.Place(vector, layer, 1, "apply").plan(engine, 1.0)
    given = None if body.neutral is None else (await _prompts(context, body.neutral, body.max_tokens, "neutral"))[0]
    prompts = await run_in_thread(calibrating.neutral_prompts, engine, given)
    reads = len(prompts) * (1 + (2 * len(layers) + 1) * calibrating.STEPS)  # each step reads them without steering, too
    check_limit(reads, context.settings.max_evaluation_answers, "answers to read", "layers")
    tokens = await context.answer_tokens(prompts, reads, body.max_tokens)
    sampling = SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed)

    async def run(progress: Progress) -> dict[str, Any]:
        """Cancelling stops it at once and stores nothing."""
        answer, made = await calibrating.calibration(
            engine, vector, layers, prompts, sampling, progress, body.operation
        )
        saved, unsaved = await _save(context, vector, made) if body.save else (None, ())
        changes = {"saved": saved, "warnings": (*answer.warnings, *unsaved)}
        return answer.model_copy(update=changes).model_dump(mode="json")

    return tokens, run


async def _check_newest(context: Context, vector: ConceptVector) -> None:
    """Raises InvalidRequest unless the vector is the newest version of its name."""
    if (newest := await context.store.vectors.get(vector.name)).version != vector.version:
        raise InvalidRequest(
            f"'save' creates the next version from the newest, which is {newest.id}; got {vector.id}", param="save"
        )


async def _save(
    context: Context, vector: ConceptVector, made: ConceptVector
) -> tuple[VectorAnswer | None, Sequence[str]]:
    """Stores what was measured as the vector's next version, unless the vector has changed or was deleted meanwhile."""
    try:
        saved = await written(lambda: context.store.vectors.put(made, after=vector))
    except VectorNotFound:
        return None, (f"not saved: {vector.name} was deleted while {vector.id} was being measured",)
    except NotNewest as error:
        return None, (f"not saved: {error.message}, which was measured",)
    return vector_answer(saved), ()


async def _prompts(
    context: Context, texts: Sequence[Text], max_tokens: int, param: str
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Returns (the caller's prompts, their token ids): texts to continue, and conversations to be answered by a new message. Raises
    LimitExceeded, ContextLengthExceeded."""
    check_limit(len(texts), context.settings.max_texts, "prompts", param)
    prompts = tuple(one if isinstance(one, str) else asking(one) for one in map(pair_text, texts))
    ids = await encode_prompts(context.engine, prompts, param)
    for prompt in ids:
        check_context(len(prompt), max_tokens, context.engine.info, param=param)
    return prompts, tuple(ids)


# Reports


async def _prepare_report(context: Context, body: schemas.ReportRequest) -> Prepared:
    engine = context.engine
    vector = await context.vector(body.vector)
    check_model(vector, engine.info)
    reader = None if body.reader is None else await context.vector(body.reader, "reader")
    await run_in_thread(read_back, engine, vector, reader, body.reading_layer, body.scorer)
    plan = await _report_plan(context, body, vector)
    vectors = await _vectors_of(context, plan)
    dataset = vector.provenance.get("dataset") or "unknown"
    same = (name for name in CONCEPTS if dataset_digest(load_concept(name)) == dataset)
    own = await run_in_thread(next, same, None)  # the starter concept from whose pairs the vector was extracted
    concept = body.concept or own
    known, others = await _readers(context, body)
    if body.prompts is not None:
        prompts, _ = await _prompts(context, body.prompts, body.max_tokens, "prompts")
    else:
        texts = load_neutral()[OWN] if concept is None else await run_in_thread(load_report_prompts, concept)
        prompts = as_prompts(engine, texts)
    if body.neutral is not None:
        neutral, _ = await _prompts(context, body.neutral, body.max_tokens, "neutral")
    else:
        neutral = as_prompts(engine, load_neutral()[-NEUTRAL:])
    request = reports.ReportRequest(
        vector=vector,
        plan=plan,
        vectors=vectors,
        prompts=prompts,
        neutral=neutral,
        direction=_direction(body, plan, vector),
        reader=reader,
        sampling=SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature),
        pairs=None if own is None else await run_in_thread(load_concept, own),
        readers=known,
        checkpoints=checkpoints_of(context),
        thresholds=body.thresholds,
        **body.model_dump(include={"reading_layer", "scorer", "seeds", "varied", "samples"}),
    )
    arms = 1 + reports.controls_of(body.seeds) + (request.pairs is not None)
    samples = Samples(body.samples, body.samples)
    plain = trial_answers(arms, len(prompts), reports.plain_samples(body.samples))
    varied = len(reports.VARIATIONS) * trial_answers(1, min(body.varied, len(prompts)), samples)
    answers = len(body.seeds) * (plain + 3 * len(neutral) + varied)  # those to neutral prompts are read twice
    check_limit(answers, context.settings.max_evaluation_answers, "answers to generate and read", "prompts")
    await run_in_thread(reports.check_varied, engine, request)
    read = [await run_in_thread(load_concept, name) for name in others]
    read += filter(None, [request.pairs])  # half of them once more
    reads = [text for pairs in read for text in (*pairs.positive, *pairs.negative)]
    tokens = await context.answer_tokens(request.prompts, answers, body.max_tokens, reads)
    return tokens, partial(_run_report, context, request, others, concept)


async def _run_report(
    context: Context, request: reports.ReportRequest, others: Sequence[str], concept: str | None, progress: Progress
) -> dict[str, Any]:
    """Runs the report. Cancelling stops it at once.
    others: the starter concepts that are extracted first, to measure the side effects.
    concept: the starter concept from whose pairs a second model learns what to read. None: it is not known."""
    engine, readers = context.engine, dict(request.readers)
    for name in others:  # each at the one layer where it is read
        progress(0, 1, f"reading the pairs of {name}")
        pairs, measured = load_concept(name), measurement_of(name, engine.info.fingerprint)
        layer = round(READING_DEPTH * (engine.info.layer_count - 1)) if measured is None else measured.reading_layer
        asked = ExtractionRequest(name, pairs, layers=(layer,), position=default_position(pairs), holdout=0.0)
        readers[name] = await extract(engine, asked)
    async with _opened_scorer(context, concept) as scorer:
        work = replace(request, readers=readers, independent=scorer)
        return (await reports.report(engine, work, progress=progress)).model_dump(mode="json")


async def _report_plan(context: Context, body: schemas.ReportRequest, vector: ConceptVector) -> SteeringPlan:
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


def _direction(body: schemas.ReportRequest, plan: SteeringPlan, vector: ConceptVector) -> int:
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


async def _readers(context: Context, body: schemas.ReportRequest) -> tuple[dict[str, ConceptVector], tuple[str, ...]]:
    """Returns the stored vectors along which the texts are read, and the starter concepts that have to be extracted for that."""
    if (names := body.side_effects) is None:
        judged = body.vector.partition("@")[0]  # its own shift is no side effect
        library = [vector for vector in (await library_vectors(context))[0] if vector.name != judged]
        own = {vector.name: vector for vector in library[:MAX_READERS]}
        return own, tuple(name for name in CONCEPTS if name not in {*own, judged})
    starters = tuple(name for name in dict.fromkeys(names) if name in CONCEPTS)
    known = {name: await context.vector(name, "side_effects") for name in names if name not in CONCEPTS}
    for vector in known.values():
        check_model(vector, context.engine.info)
    return known, starters


# Transfer


async def _prepare_transfer(context: Context, body: TransferRequest) -> Prepared:
    """Checks the request as far as that is possible without the second model, and returns what runs it."""
    settings = context.settings
    if settings.scorer_model is None:
        raise UnsupportedParameter(
            "this needs a second model, and the server has none: the operator sets STEERING_SCORER_MODEL"
        )
    check_limit(len(body.pairs or ()), settings.max_pairs, "texts", "pairs")
    check_limit(len(body.anchors or ()), settings.max_texts, "texts", "anchors")
    request = await run_in_thread(_transfer_request, body)
    carrying.check_transfer(request, context.engine)
    await _check_numbers(context.engine, settings, request, request.to_layer)
    measured = await _effect_request(context, body)
    passes = reading_passes(context.engine, request.position)
    texts = (*(*request.pairs.positive, *request.pairs.negative) * passes, *request.anchors)
    if measured is None:
        tokens = await context.answer_tokens(None, 0, 0, reads=texts)
    else:
        answers = carrying.effect_answers(len(measured.prompts))
        tokens = await context.answer_tokens(measured.prompts, answers, measured.sampling.max_tokens, reads=texts)

    async def run(progress: Progress) -> dict[str, Any]:
        async with context.state[SecondModel].opened() as second:
            await _check_numbers(second, context.settings, request, request.from_layer)
            found = await carrying.transfer(context.engine, second, request, progress=progress)
        loss: dict[str, Any] = {"explained": found.explained, "cosine": found.cosine}
        loss |= {"auroc": dict(found.auroc), "warnings": list(found.warnings)}
        if measured is not None:
            loss["effect"] = await carrying.effect(context.engine, found, measured, progress=progress)
        provenance = {**found.vector.provenance, "loss": to_jsonable_python(loss)}
        stored = await written(partial(context.store.vectors.put, replace(found.vector, provenance=provenance)))
        return TransferAnswer(
            vector=vector_answer(stored),
            from_model=found.source_model,
            from_layer=found.from_layer,
            to_layer=found.to_layer,
            anchors=found.anchors,
            **loss,
        ).model_dump(mode="json")

    return tokens, run


def _transfer_request(body: TransferRequest) -> carrying.TransferRequest:
    pairs = pair_set(body.concept, body.pairs)
    anchors = carrying.default_anchors(pairs) if body.anchors is None else tuple(map(pair_text, body.anchors))
    direction = None if body.direction is None else torch.tensor(body.direction)
    given = {"name", "from_layer", "to_layer", "holdout", "seed", "description", "tags"}
    return carrying.TransferRequest(
        pairs=pairs,
        anchors=anchors,
        direction=direction,
        position=body.position or default_position(pairs),
        **body.model_dump(include=given),
    )


async def _effect_request(context: Context, body: TransferRequest) -> carrying.EffectRequest | None:
    """Resolves what is measured of the effect. Raises LimitExceeded, DoseExceeded, VectorNotFound, VectorModelMismatch,
    ContextLengthExceeded, and InsufficientScope for a vector that the caller may not steer with."""
    asked, engine, limits = body.effect, context.engine, context.limits
    if asked is None:
        return None
    limits.check_own_steering()
    limits.check_new(body.name, context.namespace, "effect")
    limits.check_names(filter(None, [asked.native]))
    answers, most = carrying.effect_answers(asked.prompts), context.settings.max_evaluation_answers
    check_limit(answers, most, "answers to generate", "effect.prompts")
    bound = limits.max_relative_dose
    if bound is not None and asked.relative_dose > bound:
        raise DoseExceeded(
            f"relative_dose {asked.relative_dose:g} is beyond the bound of {bound:g}", param="effect.relative_dose"
        )
    native = None if asked.native is None else await context.vector(asked.native, "effect.native")
    if native is not None:
        limits.check_vector(native)
        check_model(native, engine.info)
    prompts = await run_in_thread(evaluation_prompts, engine, None, asked.prompts)
    return carrying.EffectRequest(
        prompts=[await context.tokenize(one, asked.max_tokens) for one in prompts],
        relative_dose=asked.relative_dose,
        native=native,
        sampling=SamplingParams(max_tokens=asked.max_tokens, temperature=carrying.TEMPERATURE, seed=body.seed),
    )


async def _check_numbers(
    engine: Engine, settings: Settings, request: carrying.TransferRequest, layer: int | None
) -> None:
    """Raises LimitExceeded where one of the two models would hold more numbers at a time than the operator allows.
    Raises ContextLengthExceeded for an anchor that is too long.
    layer: the layer that is read. None: one of several is chosen later."""

    def check(rows: int, what: str, param: str) -> None:
        check_limit(rows * engine.info.d_model, settings.max_activations, f"activations of {what}", param)

    layers = len(tried_layers(engine.info.layer_count)) if layer is None else 1
    texts = len(request.pairs.positive) + len(request.pairs.negative)
    check(texts * layers, "pairs (texts x layers x d_model)", "pairs")
    prompts = await run_in_thread(capture_prompts, engine, request.anchors)
    lengths = [len(ids) for ids in await encode_prompts(engine, [one.prompt for one in prompts], "anchors")]
    part = carrying.PART
    tokens = max(sum(lengths[start : start + part]) for start in range(0, len(lengths), part))
    check(tokens, f"anchors in {engine.info.name} ({part} texts, with all their tokens, x d_model)", "anchors")
    check(carrying.ROWS * len(lengths), "anchors (rows x d_model)", "anchors")


# Judges, and the scorer of the operator's second model


@dataclass(frozen=True, slots=True)
class EndpointJudge:
    """Asks `chat/completions` of an address. Redirects are not followed: they could lead to one that the operator did not configure."""

    http: httpx2.AsyncClient
    model: str
    seconds: float
    at_once = 8

    async def ask(self, question: str) -> str:
        """See Judge.ask. Tries once; failures are counted in the result."""
        messages = [{"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": REPLY}
        try:
            # the client's timeouts are per read, so a reply of single bytes would never end
            async with (
                asyncio.timeout(self.seconds),
                self.http.stream("POST", "chat/completions", json=body) as response,
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


@asynccontextmanager
async def _opened_judge(settings: Settings, engine: Engine, by: Literal["self", "endpoint"]) -> AsyncIterator[Judge]:
    if by == "self" or settings.judge_base_url is None or settings.judge_model is None:
        yield EngineJudge(engine)
        return
    seconds, key = settings.judge_seconds, settings.judge_api_key
    async with httpx2.AsyncClient(
        base_url=settings.judge_base_url.rstrip("/") + "/",
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        timeout=httpx2.Timeout(seconds, connect=min(seconds, 10.0)),
        follow_redirects=False,
    ) as http:
        yield EndpointJudge(http, settings.judge_model, seconds)


@asynccontextmanager
async def _opened_scorer(context: Context, concept: str | None) -> AsyncIterator[OtherModelScorer | None]:
    """Yields the scorer of a starter concept; None where no second model is configured, or the concept is not known."""
    if context.settings.scorer_model is None or concept is None:
        yield None
        return
    async with context.state[SecondModel].opened() as engine:
        yield await other_model_scorer(engine, concept, load_concept(concept))
