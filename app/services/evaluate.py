"""Evaluations from a request's words to a result, now or as a job."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from app.http.dependencies import vector_named
from app.services.inputs import check_limit, pair_text, tokenized
from app.services.judge import check_judge, opened_judge
from app.services.responses import vector_answer
from app.state import AppState
from steering.concepts.loader import load_evaluation_prompts
from steering.engine.api import Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.quality import Recommended
from steering.schemas.evaluation import (
    DoseResponseAnswer,
    DoseResponseRequest,
    EvaluatedPoint,
    EvaluationAnswer,
    EvaluationRequest,
    JudgedPointAnswer,
    JudgementAnswer,
    JudgeRequest,
    LayerPointAnswer,
    LayerSweepAnswer,
    LayerSweepRequest,
)
from steering.schemas.extraction import Text
from steering.schemas.vectors import RecommendedAnswer, VectorAnswer
from steering.vectors import ConceptVector
from steering.workflows.evaluation import dose_response as doses
from steering.workflows.evaluation import layer_sweep as sweeps
from steering.workflows.evaluation.judge import Judging, instruction_of
from steering.workflows.evaluation.setup import as_prompts
from steering.workflows.progress import Progress

Work: TypeAlias = doses.DoseResponseRequest | sweeps.LayerSweepRequest


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One evaluation whose words have been checked."""

    state: AppState
    work: Work
    save: bool
    judge: JudgeRequest | None = None
    instructions: tuple[str, ...] | None = None

    async def run(self, progress: Progress) -> EvaluationAnswer:
        """The result. Cancelling stops it at once and stores nothing."""
        engine, work = self.state.engine, self.work
        if isinstance(work, sweeps.LayerSweepRequest):
            return _sweep_answer(await sweeps.layer_sweep(engine, work, progress=progress))
        found = await self._doses(work, progress)
        saved, said = await self._saved(found) if self.save else (None, ())
        judgement = judgement_answer(found, self.judge, self._concept) if self.judge else None
        return _dose_answer(found, saved, said, judgement)

    @property
    def _concept(self) -> str:
        """What the judge is told to look for."""
        vector = self.work.vector
        return (self.judge and self.judge.concept) or vector.description or vector.name

    async def _doses(self, work: doses.DoseResponseRequest, progress: Progress) -> doses.DoseResponse:
        engine = self.state.engine
        if self.judge is None:
            return await doses.dose_response(engine, work, progress=progress)
        async with opened_judge(self.state.settings, engine, self.judge.by) as judge:
            judged = replace(work, judging=Judging(judge, self._concept, self.instructions))
            return await doses.dose_response(engine, judged, progress=progress)

    async def job(self, progress: Progress) -> Mapping[str, Any]:
        """The same as a job's result."""
        return (await self.run(progress)).model_dump(mode="json")

    async def _saved(self, found: doses.DoseResponse) -> tuple[VectorAnswer | None, Sequence[str]]:
        """The vector's next version, with the evidence; nothing where another version came while it was measured."""
        vector = self.work.vector
        newest = await self.state.store.vectors.get(vector.name)
        if newest.version != vector.version:
            return None, (f"not saved: {newest.id} came while {vector.id} was being measured",)
        return vector_answer(await self.state.store.vectors.put(doses.with_evidence(vector, found))), ()


async def checked(state: AppState, body: EvaluationRequest) -> Evaluation:
    """Refuses at once what can be refused at once, so that no job fails of it later."""
    vector = await vector_named(state.store, body.vector)
    save = isinstance(body, DoseResponseRequest) and body.save
    judge = body.judge if isinstance(body, DoseResponseRequest) else None
    if judge is not None:
        check_judge(state.settings, judge.by)
    if save:
        await _check_newest(state, vector)
    fields: dict[str, Any] = {
        "vector": vector,
        "prompts": await _prompts(state, body),
        "layers": body.layers,
        "reader": None if body.reader is None else await vector_named(state.store, body.reader, "reader"),
        "reading_layer": body.reading_layer,
        "scorer": body.scorer,
        "sampling": SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
    }
    if body.strengths is not None:
        fields["strengths"] = body.strengths
    work, answers = await _sized(state, body, fields)
    check_limit(answers, state.settings.max_evaluation_answers, "answers to write", "strengths")
    return Evaluation(state, work, save, judge, _instructions(state, body))


async def _sized(state: AppState, body: EvaluationRequest, fields: dict[str, Any]) -> tuple[Work, int]:
    """The workflow's request and how many answers it takes; turning random directions takes a thread."""
    if isinstance(body, LayerSweepRequest):
        sweep = sweeps.LayerSweepRequest(**fields)
        return sweep, await asyncio.to_thread(sweeps.answers_to_write, state.engine, sweep)
    neutral = None if body.neutral is None else await _tokens(state, body.neutral, body.max_tokens, "neutral")
    dose = doses.DoseResponseRequest(**fields, neutral=neutral, random_directions=body.random_directions)
    return dose, await asyncio.to_thread(doses.answers_to_write, state.engine, dose)


async def _check_newest(state: AppState, vector: ConceptVector) -> None:
    newest = await state.store.vectors.get(vector.name)
    if newest.version != vector.version:
        raise InvalidRequest(
            f"'save' makes the next version of a name from its newest: {vector.id} is not it, {newest.id} is",
            param="save",
        )


async def _prompts(state: AppState, body: EvaluationRequest) -> tuple[Prompt, ...] | None:
    """Prompts as the engine takes them. Raises LimitExceeded, ContextLengthExceeded, ConceptNotFound."""
    if body.concept is not None:
        return as_prompts(state.engine, await asyncio.to_thread(load_evaluation_prompts, body.concept))
    return None if body.prompts is None else await _tokens(state, body.prompts, body.max_tokens, "prompts")


def _instructions(state: AppState, body: EvaluationRequest) -> tuple[str, ...] | None:
    """The caller's prompts as a judge reads them: without the marks of a chat template."""
    if body.prompts is None:
        return None
    return tuple(instruction_of(pair_text(text), state.engine.tokenizer) for text in body.prompts)


async def _tokens(state: AppState, texts: Sequence[Text], max_tokens: int, param: str) -> tuple[Prompt, ...]:
    check_limit(len(texts), state.settings.max_texts, "prompts", param)
    return tuple([(await tokenized(state.engine, pair_text(text), max_tokens)).token_ids for text in texts])


def job_words(body: EvaluationRequest) -> dict[str, Any]:
    """What a job's record says of the request: everything but the texts, which are the caller's own."""
    return body.model_dump(mode="json", exclude={"prompts", "neutral"}, exclude_unset=True)


def _sweep_answer(found: sweeps.LayerSweep) -> LayerSweepAnswer:
    return LayerSweepAnswer(
        vector=found.vector,
        reading_layer=found.reading_layer,
        points=[_layer_point(point) for point in found.points],
        best=None if found.best is None else _layer_point(found.best),
        recommended=_recommended(found.recommended),
        warnings=list(found.warnings),
    )


def _layer_point(point: sweeps.LayerPoint) -> LayerPointAnswer:
    return LayerPointAnswer.model_validate(asdict(point))


def _dose_answer(
    found: doses.DoseResponse, saved: VectorAnswer | None, said: Sequence[str], judgement: JudgementAnswer | None
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
        recommended=_recommended(found.recommended),
        negative=found.negative,
        warnings=[*found.warnings, *(() if found.judgement is None else found.judgement.warnings), *said],
        judgement=judgement,
        saved=saved,
    )


def judgement_answer(found: doses.DoseResponse, judge: JudgeRequest, concept: str) -> JudgementAnswer | None:
    """What the judge said, and what it was asked to look for."""
    if found.judgement is None:
        return None
    points = [JudgedPointAnswer.model_validate(asdict(point)) for point in found.judgement.points]
    failures = {str(reason): count for reason, count in found.judgement.failures.items()}
    return JudgementAnswer(
        by=judge.by, concept=concept, points=points, ratings=found.judgement.ratings, failures=failures
    )


def _recommended(found: Recommended | None) -> RecommendedAnswer | None:
    return None if found is None else RecommendedAnswer(layers=list(found.layers), strength=found.strength)
