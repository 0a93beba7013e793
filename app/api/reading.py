"""POST /v1/readout, /v1/latent-space, /v1/logit-lens, /v1/activations, /v1/score, /v1/explain, /v1/clusters: what the model represents while
it reads texts.

Everything that can be refused is refused before any device work, except what only the work itself can know: too few texts of a
class, or a dtype that cannot hold the activations that were read.
"""

import json
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.context import AdmittedDep, Context
from app.api.policy import Policy
from app.api.prompts import (
    chat_messages,
    check_activations,
    check_texts,
    encode_prompts,
    encode_texts,
    pair_text,
    prompt_of,
)
from app.api.vectors import vector_pages
from app.core.admission import check_limit
from app.core.answers import ACTIVATION_BYTES, SCORE_BYTES, damage_warnings, json_in_thread
from app.core.events import FileStream, in_thread
from app.core.requests import BINARY, ApiRoute, UploadRoute, accepts_json, needs
from steering.concepts.loader import load_neutral_texts
from steering.engine.api import Engine, Prompt
from steering.engine.capabilities import unembedding_of
from steering.engine.prompts import check_context, encode_steered
from steering.errors import InvalidRequest, LimitExceeded, StoreCorrupt, VectorNotFound
from steering.layer_indices import layer_index, layer_indices
from steering.plan.layers import resolve_layers
from steering.plan.types import SteeringPlan
from steering.schemas.base import by_layer
from steering.schemas.latent_space import (
    ClustersAnswer,
    ClustersRequest,
    LatentSpaceAnswer,
    LatentSpaceRequest,
)
from steering.schemas.reading import (
    ActivationsAnswer,
    ActivationsRequest,
    ExplainAnswer,
    ExplainRequest,
    LensSteering,
    LogitLensAnswer,
    LogitLensRequest,
    ReadoutAnswer,
    ReadoutRequest,
    ScoreAnswer,
    ScoreRequest,
)
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorSummary
from steering.workflows import activations as capturing
from steering.workflows import latent_space as maps
from steering.workflows import logprobs as scoring
from steering.workflows import readout as measuring
from steering.workflows.readout import used_vectors

log = structlog.get_logger(__name__)

_FILE: dict[int | str, dict[str, Any]] = {200: {"content": BINARY}}
MAX_JSON_NUMBERS = 250_000
"""Activations of a JSON response: 5 MB of text. A file has no such bound."""
MAX_VECTORS = 256
"""Vectors of the library that one request reads; each is a row of a matrix that every token is multiplied by."""
DIRECTION_BYTES = 4
NEUTRAL_TOKENS = 3_000
"""Upper bound of the tokens of neutral text: 64 conversations of two short messages."""
COPIES = 4
"""Copies of the activations that are clustered, in the server and its worker: as read, sent, in float64 and projected."""

router = APIRouter(route_class=ApiRoute, tags=["reading"])
uploads = APIRouter(route_class=UploadRoute, tags=["reading"])


@router.post("/v1/readout", openapi_extra=needs("generate"), response_model=ReadoutAnswer)
async def readout(body: ReadoutRequest, context: AdmittedDep) -> Response:
    """Scores each token of each text against vectors, in natural scales."""
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


@uploads.post("/v1/latent-space", openapi_extra=needs("generate"), response_model=LatentSpaceAnswer)
async def latent_space(body: LatentSpaceRequest, context: AdmittedDep) -> Response:
    """Projects texts to a point per text and layer, with the separability of labels and the directions of vectors."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts), settings.max_texts, "texts", "texts")
    check_limit(len(body.vectors), settings.max_readouts, "vectors", "vectors")
    layers = len(layer_indices(body.layers, engine.info.layer_count))
    check_activations(engine, settings, len(body.texts), layers, "activations (texts x layers x d_model)", "layers")
    vectors = await context.model_vectors(body.vectors, "vectors")
    maps.check_request(body)
    texts = tuple(map(pair_text, body.texts))
    tokens = sum(map(len, await encode_prompts(engine, texts, "texts")))
    numbers = len(texts) * (layers + 1)
    context.admission.reserve(numbers * (engine.info.d_model * ACTIVATION_BYTES + SCORE_BYTES))
    context.charge_tokens(tokens)
    found = await maps.latent_space(engine, body, texts, vectors)
    return await json_in_thread(lambda: found)


@router.post("/v1/logit-lens", openapi_extra=needs("generate"), response_model=LogitLensAnswer)
async def logit_lens(body: LogitLensRequest, context: AdmittedDep) -> Response:
    """Lists the most probable next tokens at every layer and token of the prompt."""
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
    found = await scoring.logit_lens(engine, ids, plan, layers, body.top_k)
    steering = applied_plan(plan)

    def answer() -> LogitLensAnswer:
        read = measuring.read_tokens(engine.tokenizer, ids)
        return LogitLensAnswer(model=engine.info.name, tokens=read, layers=found, steering=steering)

    return await json_in_thread(answer)


@uploads.post("/v1/activations", openapi_extra=needs("generate"), response_model=ActivationsAnswer, responses=_FILE)
async def activations(body: ActivationsRequest, request: Request, context: AdmittedDep) -> Response:
    """Returns the residual stream of texts as a safetensors file; with `Accept: application/json` as JSON."""
    as_json = accepts_json(request)
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


@router.post("/v1/score", openapi_extra=needs("generate"), response_model=ScoreAnswer)
async def score(body: ScoreRequest, context: AdmittedDep) -> Response:
    """Returns the log-probability of given continuations or texts, and whether greedy decoding would choose them."""
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


@router.post("/v1/explain", openapi_extra=needs("generate"), response_model=ExplainAnswer)
async def explain(body: ExplainRequest, context: AdmittedDep) -> Response:
    """Lists the concepts of the library that stand out in texts against neutral text, and the tokens that carry them."""
    check_texts(context.settings, body)
    engine = context.engine
    layers = None if body.layers is None else layer_indices(body.layers, engine.info.layer_count)
    vectors, warnings = await library_vectors(context)
    axes = measuring.axes_of(vectors, layers)
    if not axes:
        reason = "no vector of the library has a direction there; extract one first (POST /v1/vectors/extract)"
        raise InvalidRequest("; ".join([reason, *warnings]), param="layers" if vectors else None)
    ids = await encode_texts(engine, body)
    tokens = sum(map(len, ids))
    read = len({axis.layer for axis in axes})
    check_activations(engine, context.settings, tokens, read, "activations (tokens x layers x d_model)", "texts")
    # Neutral text is read by the first request for a vector; it is counted for every one.
    held, longest = tokens + NEUTRAL_TOKENS, max(NEUTRAL_TOKENS, *map(len, ids))
    context.admission.reserve((held * read * engine.info.d_model + longest * len(axes)) * ACTIVATION_BYTES)
    context.admission.reserve(len(ids) * body.top * measuring.CARRYING_TOKENS * SCORE_BYTES)
    context.charge_tokens(tokens)
    texts, neutral = tuple(map(pair_text, body.all_texts)), context.state[Policy].active.neutral
    found = await measuring.explain(engine, texts, axes, neutral, threshold=body.threshold, most=body.top)
    used = used_vectors({axis.vector.id: axis.vector for axis in axes})
    return await json_in_thread(
        lambda: ExplainAnswer(
            model=engine.info.name, vectors=used, neutral=len(load_neutral_texts()), texts=found, warnings=warnings
        )
    )


@uploads.post("/v1/clusters", openapi_extra=needs("generate"), response_model=ClustersAnswer)
async def clusters(body: ClustersRequest, context: AdmittedDep) -> Response:
    """Groups texts without labels by their activations at one layer, and names the vector nearest to each difference."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts), settings.max_texts, "texts", "texts")
    check_activations(engine, settings, len(body.texts), 1, "activations (texts x d_model)", "texts")
    count = engine.info.layer_count
    layer = count // 2 if body.layer is None else layer_index(body.layer, count, param="layer")
    vectors, warnings = await library_vectors(context)
    texts = tuple(map(pair_text, body.texts))
    tokens = sum(map(len, await encode_prompts(engine, texts, "texts")))
    context.admission.reserve(len(texts) * (engine.info.d_model * ACTIVATION_BYTES * COPIES + SCORE_BYTES))
    context.charge_tokens(tokens)
    found = await maps.clusters(engine, body, texts, layer, vectors)
    return await json_in_thread(lambda: found.model_copy(update={"warnings": [*warnings, *found.warnings]}))


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


async def library_vectors(context: Context) -> tuple[list[ConceptVector], list[str]]:
    """Returns (the newest version of each name by name, at most MAX_VECTORS; warnings where there are more, and of damaged ones).

    A damaged vector, or one that is deleted meanwhile, is left out: the caller named none.
    """
    found, damaged, warnings = await _listed(context)
    context.admission.reserve(sum(len(one.layers) * one.d_model for one in found) * DIRECTION_BYTES)
    vectors: list[ConceptVector] = []
    for one in found:
        try:
            vectors.append(await context.store.vectors.get(one.name, one.version))
        except VectorNotFound:
            continue
        except StoreCorrupt as error:
            log.warning("left_out_of_library", code=error.code, vector=one.id)
            damaged.append(one.id)
    return vectors, [*warnings, *damage_warnings(damaged)]


async def _listed(context: Context) -> tuple[list[VectorSummary], list[str], list[str]]:
    """Returns the first MAX_VECTORS of the loaded model, the ids of those that no listing can read, and a warning where there are more."""
    info = context.engine.info
    found, damaged = list[VectorSummary](), list[str]()
    async for page in vector_pages(context.store):
        damaged += page.damaged
        found += [
            one for one in page.vectors if one.model_fingerprint == info.fingerprint and one.d_model == info.d_model
        ]
        if len(found) > MAX_VECTORS:
            warning = f"the library has more than {MAX_VECTORS} vectors; only the first by name are read"
            return found[:MAX_VECTORS], damaged, [warning]
    return found, damaged, []


def applied_plan(plan: SteeringPlan) -> LensSteering | None:
    """Reports the steering of a reading; None without any."""
    if plan.empty:
        return None
    return LensSteering(fingerprint=plan.fingerprint, vectors=dict(plan.vectors), warnings=list(plan.warnings))
