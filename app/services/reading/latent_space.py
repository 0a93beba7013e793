"""Projects the activations of texts to two or three dimensions, layer by layer."""

from starlette.responses import Response

from app.http.answers import json_in_thread
from app.services.context import Context
from app.services.inputs import check_activations, encode_prompts, pair_text
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES
from steering.layer_indices import layer_indices
from steering.schemas.latent_space import LatentSpaceRequest
from steering.workflows.reading import latent_space as workflow


async def latent_space(context: Context, body: LatentSpaceRequest) -> Response:
    """Reads the texts and projects their activations. What only the projection can know (too few texts, say) it refuses itself."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts), settings.max_texts, "texts", "texts")
    check_limit(len(body.vectors), settings.max_readouts, "vectors", "vectors")
    layers = len(layer_indices(body.layers, engine.info.layer_count))
    check_activations(engine, settings, len(body.texts), layers, "activations (texts x layers x d_model)", "layers")
    vectors = await context.model_vectors(body.vectors, "vectors")
    workflow.check_request(body)
    texts = tuple(map(pair_text, body.texts))
    tokens = sum(map(len, await encode_prompts(engine, texts, "texts")))
    numbers = len(texts) * (layers + 1)
    context.admission.reserve(numbers * (engine.info.d_model * ACTIVATION_BYTES + SCORE_BYTES))
    context.charge_tokens(tokens)
    found = await workflow.latent_space(engine, body, texts, vectors)
    return await json_in_thread(lambda: found)
