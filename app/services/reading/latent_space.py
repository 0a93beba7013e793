"""Projects the activations of texts to two or three dimensions, layer by layer."""

from starlette.responses import Response

from app.services.context import Context
from app.services.inputs import check_activations, pair_text
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, json_in_thread
from steering.layer_indices import layer_indices
from steering.schemas.latent_space import LatentSpaceRequest
from steering.workflows.reading import latent_space as workflow


async def latent_space(context: Context, body: LatentSpaceRequest) -> Response:
    """Reads the texts and projects their activations. What only the projection can know (too few texts, say) it refuses itself."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts), settings.max_texts, "texts", "texts")
    check_limit(len(body.vectors), settings.max_readouts, "vectors", "vectors")
    layers = layer_indices(body.layers, engine.info.layer_count)
    what = "activations (texts x layers x d_model)"
    check_activations(engine, settings, len(body.texts), len(layers), what, "layers")
    resolved = {
        "texts": tuple(map(pair_text, body.texts)),
        "layers": layers,
        "vectors": await context.model_vectors(body.vectors, "vectors"),
    }
    request = workflow.LatentSpaceRequest(**{**dict(body), **resolved})
    workflow.check_request(engine, request)
    numbers = len(request.texts) * (len(layers) + 1)
    context.admission.reserve(numbers * (engine.info.d_model * ACTIVATION_BYTES + SCORE_BYTES))
    found = await workflow.latent_space(engine, request)
    return await json_in_thread(lambda: found)
