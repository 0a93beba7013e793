"""Reads activations of texts: as one safetensors file, or as JSON where they are few."""

import json
from collections.abc import Sequence

from starlette.responses import Response

from app.http.streaming import FileStream, in_thread
from app.services.context import Context
from app.services.inputs import check_activations, encode_prompts, pair_text
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, applied_plan, json_in_thread
from steering.engine.api import Prompt
from steering.errors import LimitExceeded
from steering.layer_indices import layer_indices
from steering.schemas.base import by_layer
from steering.schemas.reading import ActivationsAnswer, ActivationsRequest, LensSteering
from steering.threads import run_in_thread
from steering.workflows.reading import activations as workflow

MAX_JSON_NUMBERS = 250_000
"""Numbers of a JSON response: 5 MB of text. A file has no such bound."""


async def activations(context: Context, body: ActivationsRequest, *, as_json: bool) -> Response:
    """Reads every text. Everything that can be refused is refused before any device work, except a dtype that cannot hold what
    was read."""
    engine, settings = context.engine, context.settings
    source, prompts = _source(body)
    check_limit(len(prompts), settings.max_texts, "texts", source)
    check_limit(len(body.messages or ()), settings.max_messages, "messages", "messages")
    layers = layer_indices(body.layers, engine.info.layer_count)
    plan = await context.plan(body.steering)
    tokens = sum(map(len, await encode_prompts(engine, prompts, source)))
    rows = tokens if body.position == "all" else len(prompts)
    what = f"activations ({'tokens' if body.position == 'all' else 'texts'} x layers x d_model)"
    check_activations(engine, settings, rows, len(layers), what, "layers")
    numbers = rows * len(layers) * engine.info.d_model
    if as_json and numbers > MAX_JSON_NUMBERS:
        raise LimitExceeded(
            f"{numbers} numbers in JSON; at most {MAX_JSON_NUMBERS}. Ask for a file: Accept: application/octet-stream",
            param="layers",
        )
    context.charge_tokens(tokens)
    context.admission.reserve(numbers * (ACTIVATION_BYTES + (SCORE_BYTES if as_json else 0)))
    found = await workflow.activations(engine, prompts, layers, body.position, plan)
    await run_in_thread(workflow.check_range, found, body.dtype)
    steering = applied_plan(plan)
    if as_json:
        return await json_in_thread(lambda: _answer(engine.info.name, body, found, steering))
    metadata = {
        "model": engine.info.name,
        "model_fingerprint": engine.info.fingerprint,
        "position": str(body.position),
        "steering": "null" if steering is None else json.dumps(steering.model_dump(mode="json")),
    }
    file = workflow.SafetensorsFile(found, body.dtype, metadata)
    return FileStream(in_thread(file.pieces()), "activations.safetensors", context.state, length=file.length)


def _answer(
    model: str, body: ActivationsRequest, found: workflow.Activations, steering: LensSteering | None
) -> ActivationsAnswer:
    every = found.every_token
    rows = {layer: [row for part in found.rows(layer) for row in part.tolist()] for layer in found.layers}
    return ActivationsAnswer(
        model=model,
        position=body.position,
        layers=by_layer(rows),
        offsets=list(found.offsets) if every else None,
        token_ids=list(found.token_ids) if every else None,
        steering=steering,
    )


def _source(body: ActivationsRequest) -> tuple[str, Sequence[Prompt]]:
    """Returns the field that holds the texts, and the texts."""
    if body.token_ids is not None:
        return "token_ids", body.token_ids
    if body.texts is not None:
        return "texts", list(map(pair_text, body.texts))
    return "messages", [pair_text(body.messages or ())]
