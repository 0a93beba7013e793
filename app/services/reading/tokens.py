"""Reads texts token by token: readout, logit lens, scores, activations. Everything that can be refused is refused before any device
work, except a dtype that cannot hold the activations that were read."""

import json
from collections.abc import Sequence

from starlette.responses import Response

from app.http.answers import json_in_thread
from app.http.streaming import FileStream, in_thread
from app.services.context import Context
from app.services.inputs import (
    chat_messages,
    check_activations,
    check_texts,
    encode_prompts,
    encode_texts,
    pair_text,
    prompt_of,
)
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, applied_plan
from steering.engine.api import Engine, Prompt
from steering.engine.capabilities import unembedding_of
from steering.engine.prompts import check_context, encode_steered
from steering.errors import InvalidRequest, LimitExceeded
from steering.layer_indices import layer_indices
from steering.plan.layers import resolve_layers
from steering.schemas.base import by_layer
from steering.schemas.reading import (
    ActivationsAnswer,
    ActivationsRequest,
    LensSteering,
    LogitLensAnswer,
    LogitLensRequest,
    ReadoutAnswer,
    ReadoutRequest,
    ScoreAnswer,
    ScoreRequest,
)
from steering.threads import run_in_thread
from steering.workflows.reading import activations as capturing
from steering.workflows.reading import logit_lens as lens
from steering.workflows.reading import readout as measuring
from steering.workflows.reading import score as scoring

MAX_JSON_NUMBERS = 250_000
"""Activations of a JSON response: 5 MB of text. A file has no such bound."""


async def readout(context: Context, body: ReadoutRequest) -> Response:
    """Measures texts against vectors, token by token and layer by layer."""
    engine, settings = context.engine, context.settings
    check_texts(settings, body)
    check_limit(len(body.vectors), settings.max_readouts, "vectors", "vectors")
    vectors = await context.model_vectors(body.vectors, "vectors")
    count = engine.info.layer_count
    layers = {layer for vector in vectors.values() for layer in resolve_layers(body.layers, vector, count)}
    ids = await encode_texts(engine, body)
    tokens = sum(map(len, ids))
    check_activations(engine, settings, tokens, len(layers), "activations (tokens x layers x d_model)", "texts")
    numbers = tokens * len(layers)
    context.admission.reserve(numbers * (engine.info.d_model * ACTIVATION_BYTES + len(vectors) * SCORE_BYTES))
    context.charge_tokens(tokens)
    found = await measuring.readout(engine, ids, vectors, body.layers)
    used = measuring.used_vectors(vectors)
    return await json_in_thread(lambda: ReadoutAnswer(model=engine.info.name, vectors=used, texts=found))


async def logit_lens(context: Context, body: LogitLensRequest) -> Response:
    """Predicts the next token at every layer and token of a prompt, plain and steered, by unembedding every layer."""
    settings, engine = context.settings, context.engine
    unembedding_of(engine)
    check_limit(body.top_k, settings.max_top_logprobs, "predictions a token", "top_k")
    layers = layer_indices(body.layers, engine.info.layer_count)
    prompt = prompt_of(body, settings)
    ids, plan = await encode_steered(engine.tokenizer, prompt, await context.plan(body.steering))
    check_context(len(ids), 0, engine.info, param="prompt" if body.prompt is not None else "messages")
    tokens = len(ids) * (1 if plan.empty else 2)
    check_activations(engine, settings, tokens, len(layers), "activations (tokens x layers x d_model)", "layers")
    predictions = tokens * len(layers) * body.top_k
    check_limit(predictions, settings.max_predictions, "predictions (tokens x layers x top_k)", "layers")
    logits = tokens * engine.info.vocab_size
    activations = tokens * len(layers) * engine.info.d_model
    context.admission.reserve((logits + activations) * ACTIVATION_BYTES + predictions * SCORE_BYTES)
    context.charge_tokens(tokens)
    found = await lens.logit_lens(engine, ids, plan, layers, body.top_k)
    steering = applied_plan(plan)

    def answer() -> LogitLensAnswer:
        read = measuring.read_tokens(engine.tokenizer, ids)
        return LogitLensAnswer(model=engine.info.name, tokens=read, layers=found, steering=steering)

    return await json_in_thread(answer)


async def score(context: Context, body: ScoreRequest) -> Response:
    """Scores continuations of a prompt, or whole texts, under steering."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts or ()), settings.max_texts, "texts", "texts")
    check_limit(len(body.continuations or ()), settings.max_texts, "continuations", "continuations")
    check_limit(len(body.messages or ()), settings.max_messages, "messages", "messages")
    plan = await context.plan(body.steering)
    if body.texts is not None:
        rows, prompt_length = await encode_prompts(engine, body.texts, "texts"), 0
    else:
        prompt: Prompt = chat_messages(body.messages) if body.messages is not None else (body.prompt or "")
        before, plan = await encode_steered(engine.tokenizer, prompt, plan)
        rows, prompt_length = await _continued(engine, body, prompt, before, settings.max_scored_tokens), len(before)
    tokens = sum(map(len, rows))
    what = "tokens (the prompt counts for each continuation)"
    check_limit(tokens, settings.max_scored_tokens, what, "texts" if body.texts is not None else "continuations")
    positions = [len(row) - max(prompt_length - 1, 0) for row in rows]  # of which logits are held
    logits = max(scoring.LOGITS_BOUND, max(positions) * engine.info.vocab_size)
    held = min(logits, sum(positions) * engine.info.vocab_size)
    context.admission.reserve(held * ACTIVATION_BYTES + tokens * SCORE_BYTES)
    context.charge_tokens(tokens)
    found = await scoring.score(engine, rows, prompt_length, plan)
    model, steering = engine.info.name, applied_plan(plan)
    return await json_in_thread(
        lambda: ScoreAnswer(model=model, prompt_tokens=prompt_length, scores=found, steering=steering)
    )


async def _continued(
    engine: Engine, body: ScoreRequest, prompt: Prompt, before: tuple[int, ...], most: int
) -> list[tuple[int, ...]]:
    """Returns the prompt's tokens, `before`, with those of each continuation."""
    assert body.continuations is not None
    check_limit(len(before) * len(body.continuations), most, "tokens (prompt x continuations)", "continuations")
    texts = body.continuations
    found = await run_in_thread(lambda: [scoring.continuation_ids(engine.tokenizer, prompt, text) for text in texts])
    for index, ids in enumerate(found):
        if not ids:
            raise InvalidRequest("the continuation has no token", param=f"continuations.{index}")
        check_context(len(before) + len(ids), 0, engine.info, param="continuations")
    return [(*before, *ids) for ids in found]


async def activations(context: Context, body: ActivationsRequest, *, as_json: bool) -> Response:
    """Reads activations of texts: as one safetensors file, or as JSON where they are few."""
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
    context.admission.reserve(numbers * (ACTIVATION_BYTES + (SCORE_BYTES if as_json else 0)))
    context.charge_tokens(tokens)
    found = await capturing.activations(engine, prompts, layers, body.position, plan)
    await run_in_thread(capturing.check_range, found, body.dtype)
    steering = applied_plan(plan)
    if as_json:
        return await json_in_thread(lambda: _activations_answer(engine.info.name, body, found, steering))
    metadata = {
        "model": engine.info.name,
        "model_fingerprint": engine.info.fingerprint,
        "position": str(body.position),
        "steering": "null" if steering is None else json.dumps(steering.model_dump(mode="json")),
    }
    file = capturing.SafetensorsFile(found, body.dtype, metadata)
    return FileStream(in_thread(file.pieces()), "activations.safetensors", context.state, length=file.length)


def _activations_answer(
    model: str, body: ActivationsRequest, found: capturing.Activations, steering: LensSteering | None
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
