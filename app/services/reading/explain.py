"""Finds the concepts of the library that stand out in texts."""

from starlette.responses import Response

from app.services.context import Context
from app.services.inputs import check_activations, check_texts, encode_texts, pair_text
from app.services.reading.library import library_vectors
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, json_in_thread
from steering.concepts.loader import load_neutral_texts
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.schemas.reading import (
    ExplainAnswer,
    ExplainRequest,
)
from steering.workflows.reading import explain as workflow
from steering.workflows.reading.readout import used_vectors

NEUTRAL_TOKENS = 3_000
"""Upper bound of the tokens of neutral text: 64 conversations of two short messages."""


async def explain(context: Context, body: ExplainRequest) -> Response:
    """Reads every text, and neutral text where its statistics are not known yet. Everything that can be refused is refused
    before any device work."""
    check_texts(context.settings, body)
    engine = context.engine
    layers = None if body.layers is None else layer_indices(body.layers, engine.info.layer_count)
    vectors, warnings = await library_vectors(context)
    axes = workflow.axes_of(vectors, layers)
    if not axes:
        raise InvalidRequest(
            "no vector of the library has a direction there; extract one first (POST /v1/vectors/extract)",
            param="layers" if vectors else None,
        )
    ids = await encode_texts(engine, body)
    tokens = sum(map(len, ids))
    read = len({axis.layer for axis in axes})
    check_activations(engine, context.settings, tokens, read, "activations (tokens x layers x d_model)", "texts")
    context.charge_tokens(tokens)
    # Neutral text is read by the first request for a vector; it is counted for every one.
    held, longest = tokens + NEUTRAL_TOKENS, max(NEUTRAL_TOKENS, *map(len, ids))
    context.admission.reserve((held * read * engine.info.d_model + longest * len(axes)) * ACTIVATION_BYTES)
    context.admission.reserve(len(ids) * body.top * workflow.CARRYING_TOKENS * SCORE_BYTES)
    texts, neutral = tuple(map(pair_text, body.all_texts)), context.state.neutral
    found = await workflow.explain(engine, texts, axes, neutral, threshold=body.threshold, most=body.top)
    used = used_vectors({axis.vector.id: axis.vector for axis in axes})
    return await json_in_thread(
        lambda: ExplainAnswer(
            model=engine.info.name, vectors=used, neutral=len(load_neutral_texts()), texts=found, warnings=warnings
        )
    )
