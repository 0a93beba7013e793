"""POST /v1/embeddings: pooled activations of texts at one layer."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

from app.openai.models import profile_in
from app.openai.schemas import EmbeddingRequest, inputs_of
from app.services.context import Context
from app.services.inputs import check_activations
from app.services.limits import check_limit
from app.services.reading.responses import SCORE_BYTES
from steering.engine.prompts import check_context, encode_prompt
from steering.layer_indices import layer_index
from steering.workflows.reading.prompt_logprobs import embed


async def answer(context: Context, body: EmbeddingRequest) -> dict[str, Any]:
    """Reads the texts and builds the response. Everything that can be refused is refused before any device work."""
    engine, texts = context.engine, inputs_of(body.input)
    check_limit(len(texts), context.settings.max_texts, "inputs", "input")
    profile_in(context, body.model)  # raises where the model is another; a profile changes nothing here
    layer = layer_index(body.layer, engine.info.layer_count, param="layer")
    ids = []
    for text in texts:
        ids.append(await encode_prompt(engine.tokenizer, text))
        check_context(len(ids[-1]), 0, engine.info, param="input")
    tokens = sum(map(len, ids))
    check_activations(engine, context.settings, len(texts), 1, "activations (inputs x d_model)", "input")
    context.admission.reserve(len(texts) * engine.info.d_model * SCORE_BYTES)
    context.charge_tokens(tokens)
    found = await embed(engine, ids, layer, body.position)
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(values, body.encoding_format)}
            for index, values in enumerate(found)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "layer": layer,
    }


def _encoded(values: Sequence[float], form: str) -> list[float] | str:
    """Returns numbers, or little-endian float32 in base64 as the openai client requests by default."""
    if form == "float":
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
