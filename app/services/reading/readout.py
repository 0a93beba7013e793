"""Measures texts against vectors, token by token and layer by layer."""

from starlette.responses import Response

from app.services.context import Context
from app.services.inputs import check_activations, check_texts, encode_texts
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, json_in_thread
from steering.plan.layers import resolve_layers
from steering.schemas.reading import ReadoutAnswer, ReadoutRequest
from steering.workflows.reading import readout as workflow


async def readout(context: Context, body: ReadoutRequest) -> Response:
    """Reads every text. Everything that can be refused is refused before any device work."""
    engine, settings = context.engine, context.settings
    check_texts(settings, body)
    check_limit(len(body.vectors), settings.max_readouts, "vectors", "vectors")
    vectors = await context.model_vectors(body.vectors, "vectors")
    count = engine.info.layer_count
    layers = {layer for vector in vectors.values() for layer in resolve_layers(body.layers, vector, count)}
    ids = await encode_texts(engine, body)
    tokens = sum(map(len, ids))
    check_activations(engine, settings, tokens, len(layers), "activations (tokens x layers x d_model)", "texts")
    context.charge_tokens(tokens)
    numbers = tokens * len(layers)
    context.admission.reserve(numbers * (engine.info.d_model * ACTIVATION_BYTES + len(vectors) * SCORE_BYTES))
    found = await workflow.readout(engine, ids, vectors, body.layers)
    used = workflow.used_vectors(vectors)
    return await json_in_thread(lambda: ReadoutAnswer(model=engine.info.name, vectors=used, texts=found))
