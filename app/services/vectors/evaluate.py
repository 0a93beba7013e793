"""Runs layer sweeps and dose-responses of a vector."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from app.services.context import Context
from app.services.inputs import pair_text, tokenize
from app.services.limits import check_limit, check_own_steering, check_vectors
from app.services.resources import recommended_answer, vector_answer
from app.services.vectors.judge import check_judge, opened_judge
from steering.concepts.loader import load_evaluation_prompts
from steering.engine.api import Prompt, SamplingParams
from steering.errors import InvalidRequest, VectorNotFound
from steering.plan.dose import DoseGuard
from steering.plan.layers import resolve_layers
from steering.schemas.evaluation import (
    DoseResponseAnswer,
    DoseResponseRequest,
    EvaluatedPoint,
    EvaluationRequest,
    JudgedPointAnswer,
    JudgementAnswer,
    JudgeRequest,
    LayerPointAnswer,
    LayerSweepAnswer,
    LayerSweepRequest,
    StrengthsAnswer,
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

WorkflowRequest: TypeAlias = doses.DoseResponseRequest | sweeps.LayerSweepRequest


@dataclass(frozen=True, slots=True, eq=False)
class PreparedEvaluation:
    """An evaluation whose names are resolved. save: whether its result is stored with the vector."""

    context: Context
    request: WorkflowRequest
    save: bool
    judge: JudgeRequest | None = None
    instructions: tuple[str, ...] | None = None

    @property
    def concept(self) -> str:
        """What the judge looks for."""
        vector = self.request.vector
        return (self.judge and self.judge.concept) or vector.description or vector.name


async def check(context: Context, body: StrengthsRequest, vector: ConceptVector) -> None:
    """Raises UnsupportedParameter for a judge that is not configured, InvalidRequest for a version that cannot be saved,
    InsufficientScope for a vector that the caller may not steer with."""
    check_own_steering(context.limits, profile=False, listed=True)
    check_vectors(context.limits, [vector.name])
    if isinstance(body, DoseResponseRequest):
        if body.judge is not None:
            check_judge(context.settings, body.judge.by)
        if body.save:
            await _check_newest(context, vector)


async def prepare(context: Context, body: StrengthsRequest) -> PreparedEvaluation:
    """Resolves the request. Everything that can be refused at once is refused here, so that no job fails of it later."""
    vector = await context.vector(body.vector)
    await check(context, body, vector)
    fields: dict[str, Any] = {
        "vector": vector,
        "prompts": await _prompts(context, body),
        "layers": body.layers,
        "reader": None if body.reader is None else await context.vector(body.reader, "reader"),
        "reading_layer": body.reading_layer,
        "scorer": body.scorer,
        "sampling": SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
    }
    if body.strengths is not None:
        fields["strengths"] = tuple(body.strengths)
    bound = context.limits.max_relative_dose
    if bound is not None:
        fields["guard"] = DoseGuard(bound, "refuse")
    request, answers = await _with_size(context, body, fields)
    check_limit(answers, context.settings.max_evaluation_answers, "answers to generate", "strengths")
    if bound is not None:
        await _check_dose(context, request)
    save = isinstance(body, DoseResponseRequest) and body.save
    judge = body.judge if isinstance(body, DoseResponseRequest) else None
    return PreparedEvaluation(context, request, save, judge, _instructions(context, body))


async def run(work: PreparedEvaluation, progress: Progress) -> StrengthsAnswer:
    """Runs the evaluation. Cancelling stops it at once and stores nothing."""
    engine, request = work.context.engine, work.request
    if isinstance(request, sweeps.LayerSweepRequest):
        return _sweep_answer(await sweeps.layer_sweep(engine, request, progress=progress))
    found = await _dose_response(work, request, progress)
    saved, warnings = await _save(work, found) if work.save else (None, ())
    judgement = judgement_answer(found, work.judge, work.concept) if work.judge else None
    return _dose_answer(found, saved, warnings, judgement)


async def job(work: PreparedEvaluation, progress: Progress) -> Mapping[str, Any]:
    """Runs the evaluation and returns the result of a job."""
    return (await run(work, progress)).model_dump(mode="json")


async def _dose_response(
    work: PreparedEvaluation, request: doses.DoseResponseRequest, progress: Progress
) -> doses.DoseResponse:
    engine = work.context.engine
    if work.judge is None:
        return await doses.dose_response(engine, request, progress=progress)
    async with opened_judge(work.context.settings, engine, work.judge.by) as judge:
        judged = replace(request, judging=Judging(judge, work.concept, work.instructions))
        return await doses.dose_response(engine, judged, progress=progress)


async def _save(work: PreparedEvaluation, found: doses.DoseResponse) -> tuple[VectorAnswer | None, Sequence[str]]:
    """Stores the evidence as the vector's next version, unless the vector has changed or was deleted meanwhile."""
    vector = work.request.vector
    try:
        newest = await work.context.store.vectors.get(vector.name)
    except VectorNotFound:
        return None, (f"not saved: {vector.name} was deleted while {vector.id} was being measured",)
    if newest.version != vector.version:
        return None, (f"not saved: {newest.id} was created while {vector.id} was being measured",)
    return vector_answer(await work.context.store.vectors.put(with_evidence(vector, found))), ()


async def _with_size(context: Context, body: StrengthsRequest, fields: dict[str, Any]) -> tuple[WorkflowRequest, int]:
    """Returns the workflow's request and how many answers it generates. Drawing random directions takes a thread."""
    if isinstance(body, LayerSweepRequest):
        sweep = sweeps.LayerSweepRequest(**fields)
        return sweep, await run_in_thread(sweeps.answers_to_write, context.engine, sweep)
    neutral = None if body.neutral is None else await _tokenize_all(context, body.neutral, body.max_tokens, "neutral")
    dose = doses.DoseResponseRequest(**fields, neutral=neutral, random_directions=body.random_directions)
    return dose, await run_in_thread(doses.answers_to_write, context.engine, dose)


async def _check_dose(context: Context, request: WorkflowRequest) -> None:
    """Raises DoseExceeded where the largest strength is beyond the dose that the policy and the key allow."""
    layers = resolve_layers(request.layers, request.vector, context.engine.info.layer_count)
    strength = max(request.strengths, key=abs)
    for place in [(layer,) for layer in layers] if isinstance(request, sweeps.LayerSweepRequest) else [layers]:
        await plan_at(context.engine.info, request.vector, strength, place, request.guard)


async def _check_newest(context: Context, vector: ConceptVector) -> None:
    newest = await context.store.vectors.get(vector.name)
    if newest.version != vector.version:
        raise InvalidRequest(
            f"'save' creates the next version from the newest, which is {newest.id}; got {vector.id}", param="save"
        )


async def _prompts(context: Context, body: StrengthsRequest) -> tuple[Prompt, ...] | None:
    """Returns prompts as the engine takes them. Raises LimitExceeded, ContextLengthExceeded, ConceptNotFound."""
    if body.concept is not None:
        return as_prompts(context.engine, await run_in_thread(load_evaluation_prompts, body.concept))
    if body.prompts is None:
        return None
    return await _tokenize_all(context, body.prompts, body.max_tokens, "prompts")


def _instructions(context: Context, body: StrengthsRequest) -> tuple[str, ...] | None:
    """Returns the caller's prompts as a judge reads them: without the markers of a chat template."""
    if body.prompts is None:
        return None
    return tuple(instruction_of(pair_text(text), context.engine.tokenizer) for text in body.prompts)


async def _tokenize_all(context: Context, texts: Sequence[Text], max_tokens: int, param: str) -> tuple[Prompt, ...]:
    check_limit(len(texts), context.settings.max_texts, "prompts", param)
    return tuple([(await tokenize(context.engine, pair_text(text), max_tokens)).token_ids for text in texts])


def job_request(body: EvaluationRequest) -> dict[str, Any]:
    """Returns what a job's record stores of the request: everything but the caller's texts."""
    return body.model_dump(mode="json", exclude={"prompts", "neutral"}, exclude_unset=True)


def _sweep_answer(found: sweeps.LayerSweep) -> LayerSweepAnswer:
    return LayerSweepAnswer(
        vector=found.vector,
        reading_layer=found.reading_layer,
        points=[_layer_point(point) for point in found.points],
        best=None if found.best is None else _layer_point(found.best),
        recommended=None if found.recommended is None else recommended_answer(found.recommended),
        warnings=list(found.warnings),
    )


def _layer_point(point: sweeps.LayerPoint) -> LayerPointAnswer:
    return LayerPointAnswer.model_validate(asdict(point))


def _dose_answer(
    found: doses.DoseResponse, saved: VectorAnswer | None, warnings: Sequence[str], judgement: JudgementAnswer | None
) -> DoseResponseAnswer:
    points = []
    for point in found.points:
        advantage = found.advantages.get(point.strength)
        points.append(
            EvaluatedPoint.model_validate(
                {**asdict(point), "advantage": None if advantage is None else asdict(advantage)}
            )
        )
    return DoseResponseAnswer(
        vector=found.vector,
        layers=list(found.layers),
        reading_layer=found.reading_layer,
        unit=found.unit,
        baseline_score=found.baseline_score,
        points=points,
        anti_steered=found.anti_steered,
        recommended=recommended_answer(found.recommended),
        warnings=[*found.warnings, *(() if found.judgement is None else found.judgement.warnings), *warnings],
        judgement=judgement,
        saved=saved,
    )


def judgement_answer(found: doses.DoseResponse, judge: JudgeRequest, concept: str) -> JudgementAnswer | None:
    """Describes the ratings of the judge and the concept it rated."""
    if found.judgement is None:
        return None
    points = [JudgedPointAnswer.model_validate(asdict(point)) for point in found.judgement.points]
    failures = {str(reason): count for reason, count in found.judgement.failures.items()}
    return JudgementAnswer(
        by=judge.by, concept=concept, points=points, ratings=found.judgement.ratings, failures=failures
    )
