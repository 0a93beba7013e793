"""Reads texts against all vectors of the library that belong to the loaded model: explanations, clusters."""

import structlog
from starlette.responses import Response

from app.http.answers import json_in_thread
from app.services.context import Context
from app.services.inputs import check_activations, check_texts, encode_prompts, encode_texts, pair_text
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES
from app.services.resources import damage_warnings
from app.services.vectors.similar import vector_pages
from steering.concepts.loader import load_neutral_texts
from steering.errors import InvalidRequest, StoreCorrupt, VectorNotFound
from steering.layer_indices import layer_index, layer_indices
from steering.schemas.latent_space import ClustersRequest
from steering.schemas.reading import ExplainAnswer, ExplainRequest
from steering.vectors import ConceptVector, VectorSummary
from steering.workflows.reading import clusters as clustering
from steering.workflows.reading import explain as explaining
from steering.workflows.reading.readout import used_vectors

log = structlog.get_logger(__name__)
MAX_VECTORS = 256
"""Vectors of the library that one request reads; each is a row of a matrix that every token is multiplied by."""
DIRECTION_BYTES = 4
NEUTRAL_TOKENS = 3_000
"""Upper bound of the tokens of neutral text: 64 conversations of two short messages."""
COPIES = 4
"""Copies of the activations that are clustered, in the server and its worker: as read, sent, in float64 and projected."""


async def library_vectors(context: Context) -> tuple[list[ConceptVector], list[str]]:
    """Returns (the newest version of each name by name, at most MAX_VECTORS; warnings where there are more, and of damaged ones).

    A damaged vector, or one that is deleted meanwhile, is left out: the caller named none.
    """
    found, damaged, warnings = await _listed(context)
    context.admission.reserve(sum(len(one.layers) * one.d_model for one in found) * DIRECTION_BYTES)
    vectors: list[ConceptVector] = []
    for one in found:
        try:
            vectors.append(await context.store.vectors.get(one.name, one.version))
        except VectorNotFound:
            continue
        except StoreCorrupt as error:
            log.warning("left_out_of_library", code=error.code, vector=one.id)
            damaged.append(one.id)
    return vectors, [*warnings, *damage_warnings(damaged)]


async def _listed(context: Context) -> tuple[list[VectorSummary], list[str], list[str]]:
    """Returns the first MAX_VECTORS of the loaded model, the ids of those that no listing can read, and a warning where there are more."""
    info = context.engine.info
    found, damaged = list[VectorSummary](), list[str]()
    async for page in vector_pages(context.store):
        damaged += page.damaged
        found += [
            one for one in page.vectors if one.model_fingerprint == info.fingerprint and one.d_model == info.d_model
        ]
        if len(found) > MAX_VECTORS:
            warning = f"the library has more than {MAX_VECTORS} vectors; only the first by name are read"
            return found[:MAX_VECTORS], damaged, [warning]
    return found, damaged, []


async def explain(context: Context, body: ExplainRequest) -> Response:
    """Finds the concepts that stand out in texts. Neutral text is read too where its statistics are not known yet.

    Everything that can be refused is refused before any device work.
    """
    check_texts(context.settings, body)
    engine = context.engine
    layers = None if body.layers is None else layer_indices(body.layers, engine.info.layer_count)
    vectors, warnings = await library_vectors(context)
    axes = explaining.axes_of(vectors, layers)
    if not axes:
        reason = "no vector of the library has a direction there; extract one first (POST /v1/vectors/extract)"
        raise InvalidRequest("; ".join([reason, *warnings]), param="layers" if vectors else None)
    ids = await encode_texts(engine, body)
    tokens = sum(map(len, ids))
    read = len({axis.layer for axis in axes})
    check_activations(engine, context.settings, tokens, read, "activations (tokens x layers x d_model)", "texts")
    # Neutral text is read by the first request for a vector; it is counted for every one.
    held, longest = tokens + NEUTRAL_TOKENS, max(NEUTRAL_TOKENS, *map(len, ids))
    context.admission.reserve((held * read * engine.info.d_model + longest * len(axes)) * ACTIVATION_BYTES)
    context.admission.reserve(len(ids) * body.top * explaining.CARRYING_TOKENS * SCORE_BYTES)
    context.charge_tokens(tokens)
    texts, neutral = tuple(map(pair_text, body.all_texts)), context.state.policy.active.neutral
    found = await explaining.explain(engine, texts, axes, neutral, threshold=body.threshold, most=body.top)
    used = used_vectors({axis.vector.id: axis.vector for axis in axes})
    return await json_in_thread(
        lambda: ExplainAnswer(
            model=engine.info.name, vectors=used, neutral=len(load_neutral_texts()), texts=found, warnings=warnings
        )
    )


async def clusters(context: Context, body: ClustersRequest) -> Response:
    """Groups texts without labels by their activations. What only the clustering can know (too few texts, say) it refuses itself."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts), settings.max_texts, "texts", "texts")
    check_activations(engine, settings, len(body.texts), 1, "activations (texts x d_model)", "texts")
    count = engine.info.layer_count
    layer = count // 2 if body.layer is None else layer_index(body.layer, count, param="layer")
    vectors, warnings = await library_vectors(context)
    texts = tuple(map(pair_text, body.texts))
    tokens = sum(map(len, await encode_prompts(engine, texts, "texts")))
    context.admission.reserve(len(texts) * (engine.info.d_model * ACTIVATION_BYTES * COPIES + SCORE_BYTES))
    context.charge_tokens(tokens)
    found = await clustering.clusters(engine, body, texts, layer, vectors)
    return await json_in_thread(lambda: found.model_copy(update={"warnings": [*warnings, *found.warnings]}))
