"""Readouts, maps and lenses: requests made ready, and what was found in the words of the wire."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from pydantic import BaseModel
from starlette.responses import Response

from app.http.dependencies import plan_of, vector_named
from app.services.inputs import check_limit, pair_text, prompt_of
from app.state import AppState
from steering.engine.api import Engine, Prompt, unembedding_of
from steering.engine.prompts import check_context, encode_prompt
from steering.layer_indices import layer_indices
from steering.plan.layers import check_model, resolve_layers
from steering.plan.types import SteeringPlan
from steering.schemas import analysis as words
from steering.schemas.base import by_layer
from steering.schemas.extraction import Text
from steering.vectors import ConceptVector
from steering.workflows.reading import latent_space as maps
from steering.workflows.reading import logit_lens as lenses
from steering.workflows.reading import readout as readouts

ACTIVATIONS = "activations (tokens x layers x d_model)"


async def json_answer(build: Callable[[], BaseModel]) -> Response:
    """An answer built and written in a thread: it may hold a hundred thousand numbers."""
    content = await asyncio.to_thread(lambda: build().model_dump_json())
    return Response(content, media_type="application/json")


async def prepared_readout(state: AppState, body: words.ReadoutRequest) -> readouts.ReadoutRequest:
    """Everything that can be refused is refused here, before any device work."""
    texts = body.texts if body.texts is not None else (body.messages or (),)
    check_limit(len(texts), state.settings.max_texts, "texts", "texts")
    vectors = await _vectors(state, body.vectors)
    count = state.engine.info.layer_count
    layers = {layer for vector in vectors.values() for layer in resolve_layers(body.layers, vector, count)}
    ids = await _token_ids(state.engine, texts, "texts" if body.texts is not None else "messages")
    _check_activations(state, sum(map(len, ids)), len(layers), ACTIVATIONS, "texts")
    return readouts.ReadoutRequest(tuple(ids), vectors, body.layers)


def readout_answer(
    state: AppState, request: readouts.ReadoutRequest, found: Sequence[readouts.TextReadout]
) -> words.ReadoutAnswer:
    """Readouts by vector and layer."""
    return words.ReadoutAnswer(
        model=state.engine.info.name,
        vectors=_used(request.vectors),
        texts=[
            words.TextReadoutAnswer(tokens=_tokens(one.token_ids, one.tokens), readout=_by_vector(one.readouts))
            for one in found
        ],
    )


def _by_vector(found: Sequence[readouts.LayerReadout]) -> dict[str, dict[str, words.LayerScores]]:
    by_vector: dict[str, dict[int, words.LayerScores]] = {}
    for one in found:
        scores = words.LayerScores(scores=list(one.scores), mean=one.mean, max=one.max, last=one.last)
        by_vector.setdefault(one.vector, {})[one.layer] = scores
    return {name: by_layer(layers) for name, layers in by_vector.items()}


async def prepared_map(state: AppState, body: words.LatentSpaceRequest) -> maps.LatentSpaceRequest:
    """The same for a map. What only the projection can know (too few texts, say) it refuses itself."""
    check_limit(len(body.texts), state.settings.max_texts, "texts", "texts")
    layers = layer_indices(body.layers, state.engine.info.layer_count)
    vectors = await _vectors(state, body.vectors)
    _check_activations(state, len(body.texts), len(layers), "activations (texts x layers x d_model)", "layers")
    request = maps.LatentSpaceRequest(
        texts=tuple(map(pair_text, body.texts)),
        labels=body.labels,
        layers=layers,
        method=body.method,
        dims=body.dims,
        position=body.position,
        vectors=vectors,
        path=body.path,
        seed=body.seed,
        embeddings=body.embeddings,
    )
    maps.check_request(state.engine, request)
    return request


def map_answer(state: AppState, request: maps.LatentSpaceRequest, found: maps.LatentSpace) -> words.LatentSpaceAnswer:
    """Points and what they say."""
    return words.LatentSpaceAnswer(
        model=state.engine.info.name,
        method=found.method,
        vectors=_used(request.vectors or {}),
        layers=[_layer_map(one) for one in found.layers],
        embedding=None if found.embedding is None else _layer_map(found.embedding),
        path=None if found.path is None else words.PathAnswer.model_validate(asdict(found.path)),
        warnings=list(found.warnings),
    )


def _layer_map(found: maps.LayerMap) -> words.LayerMapAnswer:
    return words.LayerMapAnswer.model_validate(asdict(found))


async def prepared_lens(state: AppState, body: words.LogitLensRequest) -> lenses.LogitLensRequest:
    """The same for a lens."""
    settings, engine = state.settings, state.engine
    unembedding_of(engine)
    layers = layer_indices(body.layers, engine.info.layer_count)
    check_limit(body.top_k, settings.max_top_logprobs, "predictions a token", "top_k")
    plan = await plan_of(state, body.steering)
    ids = await encode_prompt(engine.tokenizer, prompt_of(body, settings))
    check_context(len(ids), 0, engine.info, param="prompt" if body.prompt is not None else "messages")
    readings = len(ids) * (1 if plan.empty else 2)
    _check_activations(state, readings, len(layers), ACTIVATIONS, "layers")
    predictions = readings * len(layers) * body.top_k
    check_limit(predictions, settings.max_predictions, "predictions (tokens x layers x top_k)", "layers")
    return lenses.LogitLensRequest(ids, plan, layers, body.top_k)


def lens_answer(state: AppState, request: lenses.LogitLensRequest, found: lenses.LogitLens) -> words.LogitLensAnswer:
    """Predictions by layer and token."""
    return words.LogitLensAnswer(
        model=state.engine.info.name,
        tokens=_tokens(found.token_ids, found.tokens),
        layers=[
            words.LensLayerAnswer(
                layer=one.layer,
                plain=_rows(one.plain),
                steered=None if one.steered is None else _rows(one.steered),
            )
            for one in found.layers
        ],
        steering=_lens_steering(request.plan),
    )


def _rows(rows: Sequence[lenses.Row]) -> list[list[words.PredictionAnswer]]:
    return [
        [words.PredictionAnswer(id=one.token_id, text=one.text, logprob=one.logprob) for one in row] for row in rows
    ]


def _lens_steering(plan: SteeringPlan) -> words.LensSteering | None:
    if plan.empty:
        return None
    return words.LensSteering(fingerprint=plan.fingerprint, vectors=dict(plan.vectors), warnings=list(plan.warnings))


async def _vectors(state: AppState, names: Sequence[str]) -> dict[str, ConceptVector]:
    """Vectors of the loaded model by the names given. Raises LimitExceeded, VectorNotFound, VectorModelMismatch."""
    check_limit(len(names), state.settings.max_readouts, "vectors", "vectors")
    found = {name: await vector_named(state.store, name, "vectors") for name in dict.fromkeys(names)}
    for vector in found.values():
        check_model(vector, state.engine.info)
    return found


def _used(vectors: Mapping[str, ConceptVector]) -> dict[str, words.ReadVector]:
    return {name: words.ReadVector(id=vector.id, sha256=vector.sha256) for name, vector in vectors.items()}


def _tokens(ids: Sequence[int], texts: Sequence[str]) -> list[words.ReadToken]:
    return [words.ReadToken(id=token, text=text) for token, text in zip(ids, texts, strict=True)]


async def _token_ids(engine: Engine, texts: Sequence[Text], param: str) -> list[tuple[int, ...]]:
    """Ids of every text, made in a thread. Raises ContextLengthExceeded."""
    prompts: list[Prompt] = [pair_text(text) for text in texts]
    found = await asyncio.to_thread(lambda: [engine.tokenizer.encode(prompt) for prompt in prompts])
    for ids in found:
        check_context(len(ids), 0, engine.info, param=param)
    return found


def _check_activations(state: AppState, places: int, layers: int, what: str, param: str) -> None:
    numbers = places * layers * state.engine.info.d_model
    check_limit(numbers, state.settings.max_activations, what, param)
