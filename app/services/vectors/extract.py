"""Extracts a vector from contrasting texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.services.context import Context
from app.services.inputs import check_activations, pair_set, pair_text
from app.services.limits import check_limit
from app.services.resources import vector_answer
from steering.layer_indices import layer_indices
from steering.pairs import PairSet
from steering.schemas.extraction import ExtractRequest
from steering.schemas.vectors import VectorAnswer
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, check_name
from steering.workflows.evaluation.evidence import with_shipped_evidence
from steering.workflows.extraction.describe import describe
from steering.workflows.extraction.extract import ExtractionRequest
from steering.workflows.extraction.make import check_method, make_vector
from steering.workflows.extraction.texts import reading_position
from steering.workflows.progress import Progress
from steering.workflows.training.train import TrainingSettings


@dataclass(frozen=True, slots=True, eq=False)
class PreparedExtraction:
    """An extraction that has been checked. request: None while its texts are still to be generated (`describe`)."""

    context: Context
    body: ExtractRequest
    request: ExtractionRequest | None


def check(context: Context, body: ExtractRequest) -> None:
    """Raises LimitExceeded for too many texts, InvalidRequest for a name, method or layers that cannot be used."""
    limit = context.settings.max_pairs
    check_name(body.name)
    check_method(context.engine, body.method, _training(body), paired=body.positive is None)
    layer_indices(body.layers, context.engine.info.layer_count)
    for texts, param in ((body.pairs, "pairs"), (body.positive, "positive"), (body.negative, "negative")):
        check_limit(len(texts or ()), limit, "texts", param)


async def prepare(context: Context, body: ExtractRequest) -> PreparedExtraction:
    """Resolves the request. Everything that can be refused at once is refused here, so that no job fails of it later."""
    check(context, body)
    if body.describe is not None:
        return PreparedExtraction(context, body, None)
    pairs = await run_in_thread(_pairs, body)
    return PreparedExtraction(context, body, _workflow_request(context, body, pairs))


async def run(work: PreparedExtraction, progress: Progress) -> ConceptVector:
    """Returns the stored vector. Cancelling stops the work and stores nothing."""
    engine, request = work.context.engine, work.request
    if request is None:
        assert work.body.describe is not None
        trait, opposite = work.body.describe.trait, work.body.describe.opposite
        written = await describe(engine, trait, opposite, progress=progress)
        request = _workflow_request(work.context, work.body, written.pairs)
    vector = await make_vector(engine, request, training=_training(work.body), progress=progress)
    if work.body.concept is not None:
        vector = with_shipped_evidence(vector, work.body.concept)
    return await work.context.store.vectors.put(vector)


async def job(work: PreparedExtraction, progress: Progress) -> Mapping[str, Any]:
    """Runs the extraction and returns the result of a job."""
    return {"vector": answer(await run(work, progress)).model_dump(mode="json")}


def answer(vector: ConceptVector) -> VectorAnswer:
    """Builds the response."""
    return vector_answer(vector)


def job_request(body: ExtractRequest) -> dict[str, Any]:
    """Returns what a job's record stores of the request: everything but the caller's texts."""
    return body.model_dump(mode="json", exclude={"pairs", "positive", "negative", "describe"}, exclude_unset=True)


def _training(body: ExtractRequest) -> TrainingSettings | None:
    if body.training is None:
        return None
    return TrainingSettings(**body.training.model_dump(exclude_none=True))


def _pairs(body: ExtractRequest) -> PairSet:
    """Returns the texts of an extraction. Raises ConceptNotFound."""
    if body.positive is None or body.negative is None:
        return pair_set(body.concept, body.pairs)
    return PairSet(
        positive=tuple(map(pair_text, body.positive)), negative=tuple(map(pair_text, body.negative)), paired=False
    )


def _workflow_request(context: Context, body: ExtractRequest, pairs: PairSet) -> ExtractionRequest:
    """Returns what the workflow takes. Raises LimitExceeded when too many activations would be read."""
    layers = context.engine.info.layer_count if body.layers == "all" else len(body.layers)
    texts = len(pairs.positive) + len(pairs.negative)
    what = "activations (texts x layers x d_model)"
    check_activations(context.engine, context.settings, texts, layers, what, "layers")
    return ExtractionRequest(
        name=body.name,
        pairs=pairs,
        method=body.method,
        layers=body.layers if body.layers == "all" else tuple(body.layers),
        position=reading_position(pairs, body.position),
        holdout=body.holdout,
        seed=body.seed,
        description=body.description,
        tags=tuple(body.tags),
    )
