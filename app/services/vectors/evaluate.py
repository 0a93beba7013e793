"""Runs layer sweeps and dose-responses of a vector."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from app.services.context import Context
from app.services.inputs import pair_text, tokenize
from app.services.jobs import Work
from app.services.limits import check_limit, check_own_steering, check_vector
from app.services.resources import vector_answer
from app.services.vectors.judge import check_judge, opened_judge
from steering.concepts.loader import load_evaluation_prompts
from steering.engine.api import Prompt, SamplingParams
from steering.errors import InvalidRequest, NotNewest, VectorNotFound
from steering.plan.dose import DoseGuard
from steering.plan.layers import resolve_layers
from steering.schemas.evaluation import (
    DoseResponseAnswer,
    DoseResponseRequest,
    EvaluatedPoint,
    JudgementAnswer,
    StrengthsRequest,
)
from steering.schemas.messages import Text
from steering.schemas.vectors import VectorAnswer
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.evaluation import dose_response as doses
from steering.workflows.evaluation import layer_sweep as sweeps
from steering.workflows.evaluation.evidence import with_evidence
from steering.workflows.evaluation.judge import Judging, instruction_of
from steering.workflows.evaluation.setup import as_prompts, plan_at
from steering.workflows.progress import Progress


async def prepare(context: Context, body: StrengthsRequest) -> Work:
    """Resolves the request and returns what runs it. Everything that can be refused at once is refused here, so that no job
    fails of it later."""
    vector = await context.vector(body.vector)
    check_own_steering(context.limits, profile=False, listed=True)
    check_vector(context.limits, vector)
    if isinstance(body, DoseResponseRequest):
        await _check_dose_response(context, body, vector)
    fields: dict[str, Any] = {
        **body.model_dump(include={"layers", "reading_layer", "scorer", "strengths"}, exclude_none=True),
        "vector": vector,
        "prompts": await _prompts(context, body),
        "reader": None if body.reader is None else await context.vector(body.reader, "reader"),
        "sampling": SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
    }
    engine, bound = context.engine, context.limits.max_relative_dose
    if bound is not None:
        fields["guard"] = DoseGuard(bound, "refuse")
    request: doses.DoseResponseRequest | sweeps.LayerSweepRequest
    work: Work
    if isinstance(body, DoseResponseRequest):
        neutral = None if body.neutral is None else await _tokenized(context, body.neutral, body.max_tokens, "neutral")
        request = doses.DoseResponseRequest(**fields, neutral=neutral, random_directions=body.random_directions)
        answers = await run_in_thread(doses.answers_to_write, engine, request)  # draws the random directions
        work = partial(_dose_response, context, body, request)
    else:
        request = sweeps.LayerSweepRequest(**fields)
        answers = await run_in_thread(sweeps.answers_to_write, engine, request)
        work = partial(_layer_sweep, context, request)
    check_limit(answers, context.settings.max_evaluation_answers, "answers to generate", "strengths")
    if bound is not None:
        await _check_dose(context, request)
    await context.charge_answers(request.prompts, answers, body.max_tokens)
    return work


async def _layer_sweep(context: Context, request: sweeps.LayerSweepRequest, progress: Progress) -> dict[str, Any]:
    """Runs a sweep. Cancelling stops it at once."""
    found = await sweeps.layer_sweep(context.engine, request, progress=progress)
    return found.model_dump(mode="json")


async def _dose_response(
    context: Context, body: DoseResponseRequest, request: doses.DoseResponseRequest, progress: Progress
) -> dict[str, Any]:
    """Runs a dose-response. Cancelling stops it at once and stores nothing."""
    engine, vector, judgement = context.engine, request.vector, None
    if body.judge is None:
        found = await doses.dose_response(engine, request, progress=progress)
    else:
        concept = body.judge.concept or vector.description or vector.name
        async with opened_judge(context.settings, engine, body.judge.by) as judge:
            judging = Judging(judge, concept, _instructions(context, body))
            found = await doses.dose_response(engine, replace(request, judging=judging), progress=progress)
        assert found.judgement is not None, "the request has a judge"
        fields = {"by": body.judge.by, "concept": concept, **asdict(found.judgement)}
        judgement = JudgementAnswer.model_validate(fields)
    saved, warnings = await _save(context, vector, found) if body.save else (None, ())
    points = [{**asdict(point), "advantage": found.advantages.get(point.strength)} for point in found.points]
    answer = DoseResponseAnswer.model_validate(replace(found, judgement=None), from_attributes=True)
    changes = {
        "points": [EvaluatedPoint.model_validate(point, from_attributes=True) for point in points],
        "warnings": [*answer.warnings, *(found.judgement.warnings if found.judgement else ()), *warnings],
        "judgement": judgement,
        "saved": saved,
    }
    return answer.model_copy(update=changes).model_dump(mode="json")


async def _save(
    context: Context, vector: ConceptVector, found: doses.DoseResponse
) -> tuple[VectorAnswer | None, Sequence[str]]:
    """Stores the evidence as the vector's next version, unless the vector has changed or was deleted meanwhile."""
    try:
        saved = await context.store.vectors.put(with_evidence(vector, found), after=vector)
    except VectorNotFound:
        return None, (f"not saved: {vector.name} was deleted while {vector.id} was being measured",)
    except NotNewest as error:
        return None, (f"not saved: {error.message}, which was measured",)
    return vector_answer(saved), ()


async def _check_dose(context: Context, request: doses.DoseResponseRequest | sweeps.LayerSweepRequest) -> None:
    """Raises DoseExceeded where the largest strength is beyond the dose that the policy and the key allow."""
    layers = resolve_layers(request.layers, request.vector, context.engine.info.layer_count)
    strength = max(request.strengths, key=abs)
    one_at_a_time = isinstance(request, sweeps.LayerSweepRequest)
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


async def _prompts(context: Context, body: StrengthsRequest) -> tuple[Prompt, ...] | None:
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
