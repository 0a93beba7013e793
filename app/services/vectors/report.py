"""Runs deployment reports: a vector or profile at a fixed operating point, judged by three gates."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from app.services.context import Context
from app.services.inputs import pair_text, tokenize
from app.services.jobs import Work
from app.services.limits import check_limit, check_own_steering
from app.services.reading.library import library_vectors
from app.services.vectors.independent import opened_scorer
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept, load_evaluation_prompts, load_neutral
from steering.concepts.measured import measurement_of
from steering.engine.api import Prompt, SamplingParams
from steering.errors import InvalidRequest
from steering.operations import OPERATIONS
from steering.pairs import dataset_digest
from steering.plan.layers import check_model
from steering.plan.types import SteeringPlan
from steering.schemas.evaluation.report import ReportAnswer, ReportRequest
from steering.schemas.messages import Text
from steering.spec import InterventionSpec
from steering.spec_base import is_inline
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.evaluation.setup import as_prompts, read_back
from steering.workflows.evaluation.trials import Samples, trial_answers
from steering.workflows.extraction.extract import ExtractionRequest, extract
from steering.workflows.extraction.texts import default_position
from steering.workflows.progress import Progress
from steering.workflows.reporting import results
from steering.workflows.reporting.report import CONTROLS, plain_samples, report
from steering.workflows.reporting.variations import VARIATIONS

PROMPTS, NEUTRAL = 12, 8
MAX_READERS = 32
"""Vectors of the library along which the texts are also read."""
READING_DEPTH = 0.6
"""Share of the layers below the one at which a starter concept is read where it was not measured."""


async def prepare(context: Context, body: ReportRequest) -> Work:
    """Resolves the request and returns what runs it. Everything that can be refused at once is refused here, so that no job
    fails of it later."""
    engine = context.engine
    vector = await context.vector(body.vector)
    check_model(vector, engine.info)
    reader = None if body.reader is None else await context.vector(body.reader, "reader")
    await run_in_thread(read_back, engine, vector, reader, body.reading_layer, body.scorer)
    plan = await _plan(context, body, vector)
    own = await run_in_thread(_concept_of, vector)
    concept = body.concept or own
    known, others = await _readers(context, body)
    request = results.ReportRequest(
        vector=vector,
        plan=plan,
        vectors=await _vectors_of(context, plan),
        prompts=await _prompts(context, body, concept),
        neutral=await _checked(context, body.neutral, body.max_tokens, "neutral")
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
    check_limit(_answers(request), context.settings.max_evaluation_answers, "answers to generate", "prompts")
    await context.charge_answers(request.prompts, _answers(request), body.max_tokens)
    return partial(_run, context, request, others, concept)


def _answers(request: results.ReportRequest) -> int:
    """Counts the answers that a report generates."""
    arms, count = 1 + CONTROLS + (request.pairs is not None), request.samples
    plain = trial_answers(arms, len(request.prompts), plain_samples(count))
    varied = trial_answers(1, min(request.varied, len(request.prompts)), Samples(count, count))
    return len(request.seeds) * (plain + len(request.neutral) + len(VARIATIONS) * varied)


async def _run(
    context: Context, request: results.ReportRequest, others: Sequence[str], concept: str | None, progress: Progress
) -> dict[str, Any]:
    """Runs the report. Cancelling stops it at once.

    others: starter concepts that are extracted first, for the side effects. concept: the starter concept from whose pairs a
    second model learns what to read; None: not known.
    """
    readers = dict(request.readers)
    for name in others:
        progress(0, 1, f"reading the pairs of {name}")
        readers[name] = await _extracted(context, name)
    async with opened_scorer(context.settings, concept) as scorer:
        work = replace(request, readers=readers, independent=scorer)
        found = await report(context.engine, work, progress=progress)
        notes = () if scorer is None else (scorer.evidence,)
    plan = request.plan
    fields = {
        "vector": request.vector.id,
        "interventions": plan.spec.interventions[: plan.own],
        "fingerprint": plan.fingerprint,
        "model": context.engine.info.name,
        "direction": "up" if found.direction > 0 else "down",
        "reading_layer": found.reading_layer,
        "passed": found.passed,
        "seeds_agree": found.seeds_agree,
        "seeds": found.seeds,
        "thresholds": found.thresholds,
        "warnings": [*found.warnings, *notes],
    }
    return ReportAnswer.model_validate(fields, from_attributes=True).model_dump(mode="json")


async def _plan(context: Context, body: ReportRequest, vector: ConceptVector) -> SteeringPlan:
    if body.steering is not None:
        plan = await context.plan(body.steering)
        if not plan.own:
            raise InvalidRequest("the steering of a report must change something", param="steering")
        return plan
    check_own_steering(context.limits, profile=False, listed=True)
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
    """1 or -1: as given, or as the first intervention with the vector moves it."""
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
    """The starter concept whose pairs the vector was extracted from."""
    dataset = vector.provenance.get("dataset")
    return next((name for name in CONCEPTS if dataset and dataset_digest(load_concept(name)) == dataset), None)


async def _prompts(context: Context, body: ReportRequest, concept: str | None) -> tuple[Prompt, ...]:
    if body.prompts is not None:
        return await _checked(context, body.prompts, body.max_tokens, "prompts")
    texts = load_neutral() if concept is None else await run_in_thread(load_evaluation_prompts, concept)
    return as_prompts(context.engine, texts[:PROMPTS])


async def _checked(context: Context, texts: Sequence[Text], max_tokens: int, param: str) -> tuple[Prompt, ...]:
    """Returns the caller's prompts. Raises LimitExceeded, ContextLengthExceeded."""
    check_limit(len(texts), context.settings.max_texts, "prompts", param)
    found = tuple(map(pair_text, texts))
    for text in found:
        await tokenize(context.engine, text, max_tokens)
    return found


async def _readers(context: Context, body: ReportRequest) -> tuple[dict[str, ConceptVector], tuple[str, ...]]:
    """Stored vectors along which the texts are read, and the starter concepts that are extracted for it."""
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
    """A starter concept at the one layer where it is read."""
    info, pairs = context.engine.info, load_concept(concept)
    measured = measurement_of(concept, info.fingerprint)
    layer = round(READING_DEPTH * (info.layer_count - 1)) if measured is None else measured.reading_layer
    request = ExtractionRequest(concept, pairs, layers=(layer,), position=default_position(pairs), holdout=0.0)
    return await extract(context.engine, request)
