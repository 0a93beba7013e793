"""POST /v1/embeddings: pooled activations of texts at one layer."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from app.http.answers import json_in_thread
from app.openai.models import profile_in
from app.openai.schemas import EmbeddingRequest, inputs_of
from app.services.context import Context
from app.services.inputs import check_activations, encode_prompts
from app.services.limits import check_limit
from app.services.reading.responses import SCORE_BYTES
from steering.layer_indices import layer_index
from steering.workflows.reading.prompt_logprobs import embed


async def answer(context: Context, body: EmbeddingRequest) -> Response:
    """Reads the texts and builds the response. Everything that can be refused is refused before any device work."""
    engine, texts = context.engine, inputs_of(body.input)
    check_limit(len(texts), context.settings.max_texts, "inputs", "input")
    profile_in(context, body.model)  # raises where the model is another; a profile changes nothing here
    layer = layer_index(body.layer, engine.info.layer_count, param="layer")
    ids = await encode_prompts(engine, texts, "input")
    tokens = sum(map(len, ids))
    check_activations(engine, context.settings, len(texts), 1, "activations (inputs x d_model)", "input")
    context.admission.reserve(len(texts) * engine.info.d_model * SCORE_BYTES)
    context.charge_tokens(tokens)
    found = await embed(engine, ids, layer, body.position)

    def build() -> dict[str, Any]:
        described = [
            {"object": "embedding", "index": index, "embedding": _encoded(values, body.encoding_format)}
            for index, values in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body.model, "data": described, "usage": usage, "layer": layer}

    return await json_in_thread(build)


def _encoded(values: Sequence[float], form: str) -> list[float] | str:
    """Returns numbers, or little-endian float32 in base64 as the openai client requests by default."""
    if form == "float":
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
