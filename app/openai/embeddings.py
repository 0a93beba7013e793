"""POST /v1/embeddings: pooled activations of texts at one layer."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.openai.models import NamedModel, named_model
from app.openai.schemas import EmbeddingRequest, inputs_of
from app.services.context import Context
from app.services.inputs import check_activations
from app.services.limits import check_limit
from app.services.reading.responses import SCORE_BYTES
from steering.engine.prompts import check_context, encode_prompt
from steering.layer_indices import layer_index
from steering.workflows.reading.prompt_logprobs import embed


@dataclass(frozen=True, slots=True, eq=False)
class PreparedEmbeddings:
    """Embeddings whose model and layer are resolved and whose texts are tokenized."""

    context: Context
    model: NamedModel
    body: EmbeddingRequest
    token_ids: tuple[tuple[int, ...], ...]
    layer: int


async def prepare(context: Context, body: EmbeddingRequest) -> PreparedEmbeddings:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    engine, texts = context.engine, inputs_of(body.input)
    check_limit(len(texts), context.settings.max_texts, "inputs", "input")
    model = named_model(context, body.model)
    layer = layer_index(body.layer, engine.info.layer_count, param="layer")
    ids = []
    for text in texts:
        ids.append(await encode_prompt(engine.tokenizer, text))
        check_context(len(ids[-1]), 0, engine.info, param="input")
    check_activations(engine, context.settings, len(texts), 1, "activations (inputs x d_model)", "input")
    context.charge_tokens(sum(map(len, ids)))
    context.admission.reserve(len(texts) * engine.info.d_model * SCORE_BYTES)
    return PreparedEmbeddings(context, model, body, tuple(ids), layer)


async def answer(work: PreparedEmbeddings) -> dict[str, Any]:
    """Reads the texts and builds the response."""
    found = await embed(work.context.engine, work.token_ids, work.layer, work.body.position)
    tokens = sum(map(len, work.token_ids))
    return {
        "object": "list",
        "model": work.model.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(values, work.body.encoding_format)}
            for index, values in enumerate(found)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "layer": work.layer,
    }


def _encoded(values: Sequence[float], form: str) -> list[float] | str:
    """Returns numbers, or little-endian float32 in base64 as the openai client requests by default."""
    if form == "float":
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
