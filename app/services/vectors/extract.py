"""Extracts a vector from contrasting texts."""

from functools import partial
from typing import Any

from app.services.context import Context
from app.services.inputs import check_activations, pair_set, pair_text
from app.services.jobs import Work
from app.services.limits import check_limit
from app.services.resources import vector_answer
from steering.concepts.loader import load_neutral
from steering.layer_indices import layer_indices
from steering.pairs import PairSet
from steering.schemas.extraction import ExtractRequest
from steering.threads import run_in_thread
from steering.vectors import check_name
from steering.workflows.evaluation.evidence import with_shipped_evidence
from steering.workflows.evaluation.setup import WRITING
from steering.workflows.extraction.describe import describe
from steering.workflows.extraction.extract import ExtractionRequest
from steering.workflows.extraction.make import check_method, make_vector
from steering.workflows.extraction.texts import default_position
from steering.workflows.progress import Progress
from steering.workflows.training.train import TrainingSettings

DESCRIBED_ANSWERS = 2 * len(load_neutral())
"""Answers from which a description makes its pairs: one a pole to each neutral prompt."""


async def prepare(context: Context, body: ExtractRequest) -> Work:
    """Checks the request and returns what runs it. Everything that can be refused at once is refused here, so that no job fails
    of it later.

    Raises LimitExceeded for too many texts, InvalidRequest for a name, method or layers that cannot be used.
    """
    check_name(body.name)
    check_method(context.engine, body.method, _training(body), paired=body.positive is None)
    layer_indices(body.layers, context.engine.info.layer_count)
    for texts, param in ((body.pairs, "pairs"), (body.positive, "positive"), (body.negative, "negative")):
        check_limit(len(texts or ()), context.settings.max_pairs, "texts", param)
    if body.describe is not None:
        await context.charge_answers(None, DESCRIBED_ANSWERS, WRITING.max_tokens)
        return partial(_run, context, body, None)
    pairs = await run_in_thread(_pairs, body)
    request = _workflow_request(context, body, pairs)
    await context.charge_answers(None, 0, 0, reads=(*pairs.positive, *pairs.negative))
    return partial(_run, context, body, request)


async def _run(
    context: Context, body: ExtractRequest, request: ExtractionRequest | None, progress: Progress
) -> dict[str, Any]:
    """Stores the vector. Cancelling stops the work and stores nothing. request: None while its texts are still to be generated."""
    engine = context.engine
    if request is None:
        assert body.describe is not None
        written = await describe(engine, body.describe.trait, body.describe.opposite, progress=progress)
        request = _workflow_request(context, body, written.pairs, written.warnings)
    vector = await make_vector(engine, request, training=_training(body), progress=progress)
    if body.concept is not None:
        vector = with_shipped_evidence(vector, body.concept)
    return {"vector": vector_answer(await context.store.vectors.put(vector)).model_dump(mode="json")}


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


def _workflow_request(
    context: Context, body: ExtractRequest, pairs: PairSet, notes: tuple[str, ...] = ()
) -> ExtractionRequest:
    """Returns what the workflow takes. notes: see ExtractionRequest. Raises LimitExceeded when too many activations would be read."""
    layers = context.engine.info.layer_count if body.layers == "all" else len(body.layers)
    texts = len(pairs.positive) + len(pairs.negative)
    what = "activations (texts x layers x d_model)"
    check_activations(context.engine, context.settings, texts, layers, what, "layers")
    given = body.model_dump(include={"name", "method", "layers", "holdout", "seed", "description", "tags"})
    return ExtractionRequest(pairs=pairs, position=body.position or default_position(pairs), notes=notes, **given)
