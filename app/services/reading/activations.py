"""Reads activations of texts: as one safetensors file, or as JSON where they are few."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from app.services.context import Context
from app.services.inputs import check_activations, encode_prompts, pair_text
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, applied_plan
from steering.engine.api import Prompt
from steering.errors import LimitExceeded
from steering.layer_indices import layer_indices
from steering.schemas.base import by_layer
from steering.schemas.reading import ActivationsAnswer, ActivationsRequest
from steering.threads import run_in_thread
from steering.workflows.reading import activations as workflow

MAX_JSON_NUMBERS = 250_000
"""Numbers of a JSON response: 5 MB of text. A file has no such bound."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedActivations:
    """A request whose names are resolved and whose texts are counted."""

    context: Context
    body: ActivationsRequest
    request: workflow.ActivationsRequest


def check(context: Context, body: ActivationsRequest) -> None:
    """Raises LimitExceeded for more texts than the operator allows."""
    check_limit(len(_prompts(body)), context.settings.max_texts, "texts", _source(body))
    check_limit(len(body.messages or ()), context.settings.max_messages, "messages", "messages")


async def prepare(context: Context, body: ActivationsRequest, *, as_json: bool) -> PreparedActivations:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    check(context, body)
    engine = context.engine
    layers = layer_indices(body.layers, engine.info.layer_count)
    plan = await context.plan(body.steering)
    prompts = _prompts(body)
    tokens = sum(map(len, await encode_prompts(engine, prompts, _source(body))))
    rows = tokens if body.position == "all" else len(prompts)
    what = f"activations ({'tokens' if body.position == 'all' else 'texts'} x layers x d_model)"
    check_activations(engine, context.settings, rows, len(layers), what, "layers")
    numbers = rows * len(layers) * engine.info.d_model
    if as_json and numbers > MAX_JSON_NUMBERS:
        raise LimitExceeded(
            f"{numbers} numbers in JSON; at most {MAX_JSON_NUMBERS}. Ask for a file: Accept: application/octet-stream",
            param="layers",
        )
    context.charge_tokens(tokens)
    context.admission.reserve(numbers * (ACTIVATION_BYTES + (SCORE_BYTES if as_json else 0)))
    return PreparedActivations(context, body, workflow.ActivationsRequest(tuple(prompts), layers, body.position, plan))


async def run(work: PreparedActivations) -> workflow.Activations:
    """Reads every text. Raises InvalidRequest where the dtype cannot hold what was read."""
    found = await workflow.activations(work.context.engine, work.request)
    await run_in_thread(workflow.check_range, found, work.body.dtype)
    return found


def file(work: PreparedActivations, found: workflow.Activations) -> workflow.SafetensorsFile:
    """Describes the file; its metadata has the model, the position and the steering."""
    info, steering = work.context.engine.info, applied_plan(work.request.plan)
    metadata = {
        "model": info.name,
        "model_fingerprint": info.fingerprint,
        "position": str(work.body.position),
        "steering": "null" if steering is None else json.dumps(steering.model_dump(mode="json")),
    }
    return workflow.SafetensorsFile(found, work.body.dtype, metadata)


def answer(work: PreparedActivations, found: workflow.Activations) -> ActivationsAnswer:
    """Builds the JSON response."""
    every = found.every_token
    rows = {layer: [row for part in found.rows(layer) for row in part.tolist()] for layer in found.layers}
    return ActivationsAnswer(
        model=work.context.engine.info.name,
        position=work.body.position,
        layers=by_layer(rows),
        offsets=list(found.offsets) if every else None,
        token_ids=list(found.token_ids) if every else None,
        steering=applied_plan(work.request.plan),
    )


def _prompts(body: ActivationsRequest) -> Sequence[Prompt]:
    if body.token_ids is not None:
        return body.token_ids
    return [pair_text(one) for one in (body.texts if body.texts is not None else (body.messages or (),))]


def _source(body: ActivationsRequest) -> str:
    return next(name for name in ("texts", "messages", "token_ids") if getattr(body, name) is not None)
