"""Groups texts without labels by their activations."""

from starlette.responses import Response

from app.services.context import Context
from app.services.inputs import check_activations, pair_text
from app.services.limits import check_limit
from app.services.reading.library import library_vectors
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, json_in_thread
from steering.layer_indices import layer_index
from steering.schemas.latent_space import (
    ClustersRequest,
)
from steering.workflows.reading import clusters as workflow

COPIES = 4
"""Copies of the activations that the server and its worker hold: as read, sent, in float64 and projected."""


async def clusters(context: Context, body: ClustersRequest) -> Response:
    """Reads the texts and clusters them. What only the clustering can know (too few texts, say) it refuses itself."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts), settings.max_texts, "texts", "texts")
    check_activations(engine, settings, len(body.texts), 1, "activations (texts x d_model)", "texts")
    count = engine.info.layer_count
    layer = count // 2 if body.layer is None else layer_index(body.layer, count, param="layer")
    vectors, warnings = await library_vectors(context)
    context.admission.reserve(len(body.texts) * (engine.info.d_model * ACTIVATION_BYTES * COPIES + SCORE_BYTES))
    found = await workflow.clusters(engine, body, tuple(map(pair_text, body.texts)), layer, vectors)
    return await json_in_thread(lambda: found.model_copy(update={"warnings": [*warnings, *found.warnings]}))
