"""What the model represents while it reads texts: POST /v1/readout, /v1/latent-space, /v1/logit-lens, /v1/activations, /v1/score,
/v1/explain, /v1/clusters; and /v1/dictionaries, the sparse autoencoders that the operator registered.

Everything that can be refused is refused before any device work, except what only the work itself can know: too few texts of a
class, or a dtype that cannot hold the activations that were read.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.context import AdmittedDep, Context, ContextDep, encode_prompts, pair_text
from app.api.policy import Policy
from app.api.vectors import vector_answer, vector_pages
from app.core.admission import check_limit
from app.core.answers import ACTIVATION_BYTES, SCORE_BYTES, FileStream, damage_warnings, in_thread, json_in_thread
from app.core.requests import BINARY, ApiRoute, UploadRoute, accepts_json, needs
from steering.concepts.loader import load_neutral_texts
from steering.engine.api import CapturePrompt, Prompt
from steering.engine.capabilities import reading_passes, unembedding_of
from steering.engine.prompts import check_context, encode_steered
from steering.errors import InvalidRequest, LimitExceeded, NotFound, SteeringError, StoreCorrupt, VectorNotFound, within
from steering.lab import dictionaries as features
from steering.layer_indices import layer_index, layer_indices
from steering.model.hook_points import points_of
from steering.model.info import ModelInfo
from steering.plan.resolve import resolve_layers
from steering.plan.types import SteeringPlan
from steering.registry import unknown_name
from steering.schemas import latent_space as space
from steering.schemas import reading as schemas
from steering.schemas.messages import ConversationFields, position_as_json
from steering.schemas.steering import by_layer
from steering.schemas.vectors import VectorAnswer
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorSummary
from steering.workflows import activations as capturing
from steering.workflows import latent_space as maps
from steering.workflows import logprobs as scoring
from steering.workflows import readout as measuring
from steering.workflows.extract import registered

log = structlog.get_logger(__name__)

MAX_JSON_NUMBERS = 250_000
"""Activations of a JSON response: 5 MB of text. A file has no such bound."""
MAX_VECTORS = 256
"""Vectors of the library that one request reads; each is a row of a matrix that every token is multiplied by."""
DIRECTION_BYTES = 4
NEUTRAL_TOKENS = 3_000
"""Upper bound of the tokens of neutral text: 64 conversations of two short messages."""
COPIES = 4
"""Copies of the activations that are clustered, in the server and its worker: as read, sent, in float64 and projected."""
_GENERATE = needs("generate")
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": BINARY}}

router = APIRouter(route_class=ApiRoute, tags=["reading"])
uploads = APIRouter(route_class=UploadRoute, tags=["reading"])


@router.post("/v1/readout", openapi_extra=_GENERATE, response_model=schemas.ReadoutAnswer)
async def readout(body: schemas.ReadoutRequest, context: AdmittedDep) -> Response:
    """Scores each token of each text against vectors, in natural scales."""
    engine = context.engine
    context.check_texts(body)
    vectors = await context.model_vectors(body.vectors, "vectors")
    count = engine.info.layer_count
    layers = len({layer for vector in vectors.values() for layer in resolve_layers(body.layers, vector, count)})
    ids = await context.encode_texts(body)
    tokens = sum(map(len, ids))
    context.check_activations(tokens, layers, "activations (tokens x layers x d_model)", "texts")
    each = engine.info.d_model * ACTIVATION_BYTES + len(vectors) * SCORE_BYTES
    phases = await _phases(context, body)
    context.charge(tokens, tokens * layers * each)
    texts = await measuring.readout(engine, ids, vectors, body.layers, phases, body.hook)
    used = measuring.used_vectors(vectors)
    warnings = measuring.unread_warnings(ids, phases)
    return await json_in_thread(
        lambda: schemas.ReadoutAnswer(model=engine.info.name, vectors=used, texts=texts, warnings=warnings)
    )


async def _phases(
    context: Context, body: schemas.ReadoutRequest | schemas.ExplainRequest
) -> list[measuring.ReadPhases] | None:
    """Returns which tokens of each text are read; None for all."""
    texts = tuple(map(pair_text, body.all_texts))
    if isinstance(body, schemas.ExplainRequest) and body.turns:
        return await run_in_thread(measuring.chosen_turns, context.engine.tokenizer, texts)
    if body.phase is None:
        return None
    return await run_in_thread(measuring.chosen_phases, context.engine.tokenizer, texts, body.phase)


@uploads.post("/v1/latent-space", openapi_extra=_GENERATE, response_model=space.LatentSpaceAnswer)
async def latent_space(body: space.LatentSpaceRequest, context: AdmittedDep) -> Response:
    """Projects texts to a point per text and layer, with the separability of labels and the directions of vectors."""
    engine = context.engine
    check_limit(len(body.texts), context.settings.max_texts, "texts", "texts")
    layers = len(layer_indices(body.layers, engine.info.layer_count))
    context.check_activations(len(body.texts), layers, "activations (texts x layers x d_model)", "layers")
    vectors = await context.model_vectors(body.vectors, "vectors")
    maps.check_request(body)
    texts = tuple(map(pair_text, body.texts))
    tokens = sum(map(len, await encode_prompts(engine, texts, "texts")))
    numbers = len(texts) * (layers + 1)
    tokens *= reading_passes(engine, body.position)
    context.charge(tokens, numbers * (engine.info.d_model * ACTIVATION_BYTES + SCORE_BYTES))
    found = await maps.latent_space(engine, body, texts, vectors)
    return await json_in_thread(lambda: found)


@router.post("/v1/logit-lens", openapi_extra=_GENERATE, response_model=schemas.LogitLensAnswer)
async def logit_lens(body: schemas.LogitLensRequest, context: AdmittedDep) -> Response:
    """Lists the most probable next tokens at every layer and token of the prompt."""
    settings, engine = context.settings, context.engine
    unembedding_of(engine)
    most = settings.max_top_logprobs
    top_k = body.top_k if "top_k" in body.model_fields_set else min(body.top_k, most)
    check_limit(top_k, most, "predictions a token", "top_k")
    layers = layer_indices(body.layers, engine.info.layer_count)
    prompt = context.prompt_of(body)
    ids, plan = await encode_steered(engine.tokenizer, prompt, await context.plan(body.steering))
    check_context(len(ids), 0, engine.info, param="prompt" if body.prompt is not None else "messages")
    tokens = len(ids) * (1 if plan.empty else 2)
    context.check_activations(tokens, len(layers), "activations (tokens x layers x d_model)", "layers")
    predictions = tokens * len(layers) * top_k
    check_limit(predictions, settings.max_predictions, "predictions (tokens x layers x top_k)", "layers")
    numbers = tokens * (engine.info.vocab_size + len(layers) * engine.info.d_model)
    context.charge(tokens, numbers * ACTIVATION_BYTES + predictions * SCORE_BYTES)
    found = await scoring.logit_lens(engine, ids, plan, layers, top_k)

    def answer() -> schemas.LogitLensAnswer:
        read = measuring.read_tokens(engine.tokenizer, ids)
        return schemas.LogitLensAnswer(model=engine.info.name, tokens=read, layers=found, steering=_applied_plan(plan))

    return await json_in_thread(answer)


@uploads.post("/v1/activations", openapi_extra=_GENERATE, response_model=schemas.ActivationsAnswer, responses=_FILE)
async def activations(body: schemas.ActivationsRequest, request: Request, context: AdmittedDep) -> Response:
    """Returns the activations of texts as a safetensors file; with `Accept: application/json` as JSON."""
    as_json = accepts_json(request)
    engine, info = context.engine, context.engine.info
    source = next(name for name in ("token_ids", "texts", "messages") if getattr(body, name) is not None)
    prompts: Sequence[Prompt] = body.token_ids or list(map(pair_text, body.texts or (body.messages or (),)))
    check_limit(len(prompts), context.settings.max_texts, "texts", source)
    context.check_messages(body.messages)
    layers = layer_indices(body.layers, info.layer_count)
    points_of(layers, info, body.hook, body.head)
    plan = await context.plan(body.steering)
    tokens = sum(map(len, await encode_prompts(engine, prompts, source)))
    rows, unit = (tokens, "tokens") if body.position == "all" else (len(prompts), "texts")
    context.check_activations(rows, len(layers), f"activations ({unit} x layers x d_model)", "layers")
    numbers = rows * len(layers) * info.d_model
    if as_json and numbers > MAX_JSON_NUMBERS:
        raise LimitExceeded(
            f"{numbers} numbers in JSON; at most {MAX_JSON_NUMBERS}. Ask for a file: Accept: application/octet-stream",
            param="layers",
        )
    tokens *= reading_passes(engine, body.position)
    context.charge(tokens, numbers * (ACTIVATION_BYTES + (SCORE_BYTES if as_json else 0)))
    found = await capturing.activations(engine, prompts, layers, body.position, plan, body.hook, body.head)
    await run_in_thread(capturing.check_range, found, body.dtype)
    steering, every = _applied_plan(plan), found.every_token

    def as_answer() -> schemas.ActivationsAnswer:
        numbers = {layer: [row for part in found.rows(layer) for row in part.tolist()] for layer in found.layers}
        return schemas.ActivationsAnswer(
            model=info.name,
            position=body.position,
            layers=by_layer(numbers),
            offsets=list(found.offsets) if every else None,
            token_ids=list(found.token_ids) if every else None,
            steering=steering,
        )

    if as_json:
        return await json_in_thread(as_answer)
    position = position_as_json(body.position)
    metadata = {
        "model": info.name,
        "model_fingerprint": info.fingerprint,
        "position": position if isinstance(position, str) else json.dumps(position, separators=(",", ":")),
        "hook": body.hook if body.head is None else f"{body.hook}, head {body.head}",
        "steering": json.dumps(steering.model_dump(mode="json")),
    }
    file = capturing.SafetensorsFile(found, body.dtype, metadata)
    return FileStream(in_thread(file.pieces()), "activations.safetensors", context.state, length=file.length)


@router.post("/v1/score", openapi_extra=_GENERATE, response_model=schemas.ScoreAnswer)
async def score(body: schemas.ScoreRequest, context: AdmittedDep) -> Response:
    """Returns the log-probability of given continuations or texts, and whether greedy decoding would choose them."""
    check_score(context, body)
    work = await prepare_score(context, body, await context.plan(body.steering))
    context.charge(work.cost)
    return await json_in_thread(await work.run())


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """A request whose texts are rows.

    rows: one for each text or choice, in order. counts: how many rows belong to each prompt.
    """

    context: Context
    body: schemas.ScoreRequest
    rows: tuple[CapturePrompt, ...]
    counts: tuple[int, ...]
    plan: SteeringPlan
    priority: int

    @property
    def cost(self) -> int:
        """The tokens that count against the limit of the key."""
        return sum(len(row.prompt) for row in self.rows)

    async def run(self) -> Callable[[], schemas.ScoreAnswer]:
        """Scores the rows, and returns what builds the response in a thread."""
        found = await scoring.score(self.context.engine, self.rows, self.priority)
        return partial(self._answer, found)

    def _answer(self, found: list[schemas.ScoredText]) -> schemas.ScoreAnswer:
        items, at = list[schemas.ScoredItem](), 0
        for count in self.counts:
            length = self.rows[at].prompt_length or 0
            items.append(schemas.ScoredItem(prompt_tokens=length, scores=found[at : at + count]))
            at += count
        notes = dict.fromkeys(note for row in self.rows for note in row.plan.warnings)
        several = self.body.items is not None
        return schemas.ScoreAnswer(
            model=self.context.engine.info.name,
            prompt_tokens=None if several else items[0].prompt_tokens,
            scores=None if several else found,
            items=items if several else None,
            steering=_applied_plan(replace(self.plan, warnings=tuple(notes))),
        )


def check_score(context: Context, body: schemas.ScoreRequest) -> None:
    """Raises LimitExceeded for more texts, choices or messages than the operator allows."""
    most = context.settings.max_texts
    check_limit(len(body.texts or ()), most, "texts", "texts")
    check_limit(len(body.continuations or ()), most, "continuations", "continuations")
    check_limit(sum(len(item.choices) for item in body.items or ()), most, "choices", "items")
    context.check_messages(body.messages)
    for index, item in enumerate(body.items or ()):
        with within(f"items.{index}"):
            context.check_messages(item.messages)


async def prepare_score(
    context: Context, body: schemas.ScoreRequest, plan: SteeringPlan, *, priority: int = 0
) -> Scoring:
    """Resolves the request under its plan, and reserves its memory. Everything that can be refused is refused here and by
    `check_score`, before any device work."""
    engine = context.engine
    if body.texts is not None:
        rows = [CapturePrompt(ids, plan) for ids in await encode_prompts(engine, body.texts, "texts")]
        counts = [len(rows)]
        _check_tokens(context, sum(len(row.prompt) for row in rows), "texts")
    elif body.items is not None:
        rows, counts = await run_in_thread(_choice_rows, context, body.items, plan)
    else:
        rows = await run_in_thread(_rows, context, body, body.continuations or (), plan, "continuations")
        counts = [len(rows)]
    lengths, positions = [len(row.prompt) for row in rows], [len(row.prompt) - row.first for row in rows]
    context.admission.reserve(score_bytes(engine.info.vocab_size, lengths, positions))
    return Scoring(context, body, tuple(rows), tuple(counts), plan, priority)


def score_bytes(vocabulary: int, lengths: Sequence[int], positions: Sequence[int]) -> int:
    """Returns the memory of rows that are scored, with their scores. lengths: their tokens. positions: those with logits."""
    return scoring.held_logits(positions, vocabulary) * ACTIVATION_BYTES + sum(lengths) * SCORE_BYTES


def _choice_rows(
    context: Context, items: Sequence[schemas.ScoreItem], plan: SteeringPlan
) -> tuple[list[CapturePrompt], list[int]]:
    """Returns the rows of all items, and how many belong to each. Errors name the item."""
    rows, counts, tokens = list[CapturePrompt](), list[int](), 0
    for index, item in enumerate(items):
        with within(f"items.{index}"):
            found = _rows(context, item, item.choices, plan, "choices", tokens)
        tokens += sum(len(row.prompt) for row in found)
        rows += found
        counts.append(len(found))
    return rows, counts


def _rows(
    context: Context, fields: ConversationFields, texts: Sequence[str], plan: SteeringPlan, param: str, tokens: int = 0
) -> list[CapturePrompt]:
    """Returns the rows of one prompt with its continuations. tokens: those of other rows. Raises LimitExceeded as soon as all
    together have too many."""
    (before,) = scoring.encode_continued(context.engine, context.prompt_of(fields), (plan,))
    _check_tokens(context, tokens + len(before.ids) * len(texts), param)
    rows = list[CapturePrompt]()
    for row in scoring.continuation_rows(context.engine, before, texts, param):
        tokens += len(row.prompt)
        _check_tokens(context, tokens, param)
        rows.append(row)
    return rows


def _check_tokens(context: Context, tokens: int, param: str) -> None:
    check_limit(tokens, context.settings.max_scored_tokens, "tokens (the prompt counts for each continuation)", param)


@router.post("/v1/explain", openapi_extra=_GENERATE, response_model=schemas.ExplainAnswer)
async def explain(body: schemas.ExplainRequest, context: AdmittedDep) -> Response:
    """Lists the concepts of the library that stand out in texts against neutral text, and the tokens that carry them."""
    context.check_texts(body)
    engine = context.engine
    layers = None if body.layers is None else layer_indices(body.layers, engine.info.layer_count)
    if body.vectors is None:
        vectors, warnings = await library_vectors(context)
    else:
        vectors, warnings = [*(await context.model_vectors(body.vectors, "vectors")).values()], []
    axes = measuring.axes_of(vectors, layers)
    if not axes:
        reason = "no vector of the library has a direction there; extract one first (POST /v1/vectors/extract)"
        raise InvalidRequest("; ".join([reason, *warnings]), param="layers" if vectors else None)
    ids = await context.encode_texts(body)
    tokens = sum(map(len, ids))
    read = len({axis.layer for axis in axes})
    context.check_activations(tokens, read, "activations (tokens x layers x d_model)", "texts")
    # Neutral text is read by the first request for a vector; it is counted for every one.
    held, longest = tokens + NEUTRAL_TOKENS, max(NEUTRAL_TOKENS, *map(len, ids))
    numbers = held * read * engine.info.d_model + longest * len(axes)
    turns = sum(len(text) for text in body.all_texts if body.turns)  # as many numbers for each vector that is listed
    phases, top = await _phases(context, body), min(body.top, len(axes))
    warnings += measuring.unread_warnings(ids, phases)
    listed = len(ids) * body.top * measuring.CARRYING_TOKENS + turns * top
    context.charge(tokens, numbers * ACTIVATION_BYTES + listed * SCORE_BYTES)
    texts, neutral = tuple(map(pair_text, body.all_texts)), context.state[Policy].active.neutral
    found = await measuring.explain(
        engine, texts, axes, neutral, position=body.position, threshold=body.threshold, most=body.top, phases=phases
    )
    used, count = measuring.used_vectors({axis.vector.id: axis.vector for axis in axes}), len(load_neutral_texts())
    return await json_in_thread(
        lambda: schemas.ExplainAnswer(
            model=engine.info.name, vectors=used, neutral=count, texts=found, warnings=warnings
        )
    )


@uploads.post("/v1/clusters", openapi_extra=_GENERATE, response_model=space.ClustersAnswer)
async def clusters(body: space.ClustersRequest, context: AdmittedDep) -> Response:
    """Groups texts without labels by their activations at one layer, and names the vector nearest to each difference."""
    engine = context.engine
    check_limit(len(body.texts), context.settings.max_texts, "texts", "texts")
    context.check_activations(len(body.texts), 1, "activations (texts x d_model)", "texts")
    count = engine.info.layer_count
    layer = count // 2 if body.layer is None else layer_index(body.layer, count, param="layer")
    vectors, warnings = await library_vectors(context)
    texts = tuple(map(pair_text, body.texts))
    tokens = sum(map(len, await encode_prompts(engine, texts, "texts"))) * reading_passes(engine, body.position)
    context.charge(tokens, len(texts) * (engine.info.d_model * ACTIVATION_BYTES * COPIES + SCORE_BYTES))
    found = await maps.clusters(engine, body, texts, layer, vectors)
    return await json_in_thread(lambda: found.model_copy(update={"warnings": [*warnings, *found.warnings]}))


@router.get("/v1/dictionaries")
async def find(context: ContextDep) -> space.DictionariesAnswer:
    """Lists the dictionaries of the server."""
    info, known = context.engine.info, _folders(context)
    return space.DictionariesAnswer(
        data=await run_in_thread(lambda: [_dictionary_answer(name, folder, info) for name, folder in known.items()])
    )


@router.post("/v1/dictionaries/{name}/search", openapi_extra=_GENERATE)
async def search(name: str, body: space.DictionarySearchRequest, context: AdmittedDep) -> space.DictionarySearchAnswer:
    """Finds features near a vector or active on texts, with the tokens that they promote and, if asked, whether they steer."""
    engine = context.engine
    check_limit(len(body.texts or ()) + len(body.against or ()), context.settings.max_texts, "texts", "texts")
    found = await _dictionary(context, name)
    direction = None
    if body.vector is not None:
        vector = (await context.model_vectors((body.vector,), "vector"))[body.vector]
        if found.layer not in vector.layers:
            raise InvalidRequest(
                f"{vector.id} has no direction at layer {found.layer}, where dictionary {found.name!r} is",
                param="vector",
            )
        direction = vector.at(found.layer).direction
    texts = tuple(map(pair_text, body.texts or ()))
    against = features.compared_texts(tuple(map(pair_text, body.against or ()))) if texts else ()
    ids = await encode_prompts(engine, (*texts, *against), "texts")
    tokens = sum(map(len, ids))
    context.check_activations(tokens, 1, "activations (tokens x d_model)", "texts")
    # at a time: before the activation function, its condition, and after it
    held = 3 * min(max(map(len, ids), default=0) * found.features, features.MAX_ACTIVATIONS)
    context.charge(tokens, (2 * found.features * found.d_model + held) * ACTIVATION_BYTES)
    answers = await features.search(
        engine,
        found,
        vector=direction,
        texts=texts,
        against=against,
        top=body.top,
        min_output_score=body.min_output_score,
    )
    return space.DictionarySearchAnswer(dictionary=found.name, layer=found.layer, features=answers)


@router.post("/v1/dictionaries/{name}/vectors", status_code=201)
async def store(name: str, body: space.FeatureVectorRequest, context: ContextDep) -> VectorAnswer:
    """Stores a feature's direction as the next version of a vector."""
    found = await _dictionary(context, name)
    (row,) = await run_in_thread(found.rows, (body.feature,))
    about = body.description or f"feature {body.feature} of dictionary {name}"
    tags = tuple(dict.fromkeys((*body.tags, "saelens")))
    directions = {str(found.layer): row.tolist()}
    vector = await run_in_thread(registered, context.engine.info, body.name, directions, None, about, tags)
    provenance = {"dictionary": name, "feature": body.feature, "hook": found.hook}
    named = replace(vector, method="dictionary", provenance=provenance)
    return vector_answer(await context.store.vectors.put(named))


def _folders(context: Context) -> dict[str, Path]:
    """Returns the registered folders by name, the last part of the path."""
    return {Path(one).name: Path(one) for one in context.settings.dictionaries}


def _dictionary_answer(name: str, folder: Path, info: ModelInfo) -> space.DictionaryAnswer:
    try:
        found = features.open_dictionary(folder)
    except SteeringError as error:
        return space.DictionaryAnswer(name=name, problem=error.message)
    answer = space.DictionaryAnswer.model_validate(found, from_attributes=True)
    return answer.model_copy(update={"problem": features.problem_of(found, info)})


async def _dictionary(context: Context, name: str) -> features.Dictionary:
    """Returns a dictionary that fits the loaded model. Raises NotFound, InvalidRequest, VectorModelMismatch."""
    known = _folders(context)
    if name not in known:
        raise NotFound(unknown_name("dictionary", name, tuple(known), "name"), param="name")
    found = await run_in_thread(features.open_dictionary, known[name])
    features.check_dictionary(found, context.engine.info)
    return found


async def library_vectors(context: Context) -> tuple[list[ConceptVector], list[str]]:
    """Returns the newest version of each name, the first MAX_VECTORS of the loaded model, and warnings: that there are
    more, and which are damaged. Those, and what is deleted meanwhile, are left out: the caller named none."""
    info, listed, damaged, warnings = context.engine.info, list[VectorSummary](), list[str](), list[str]()
    async for page in vector_pages(context.store):
        damaged += page.damaged
        fitting = (info.fingerprint, info.d_model)
        listed += [one for one in page.items if (one.model_fingerprint, one.d_model) == fitting]
        if len(listed) > MAX_VECTORS:
            warnings.append(f"the library has more than {MAX_VECTORS} vectors; only the first by name are read")
            break
    listed = listed[:MAX_VECTORS]
    context.admission.reserve(sum(len(one.layers) * one.d_model for one in listed) * DIRECTION_BYTES)
    vectors: list[ConceptVector] = []
    for one in listed:
        try:
            vectors.append(await context.store.vectors.get(one.name, one.version))
        except VectorNotFound:
            continue
        except StoreCorrupt as error:
            log.warning("left_out_of_library", code=error.code, vector=one.id)
            damaged.append(one.id)
    return vectors, [*warnings, *damage_warnings(damaged)]


def _applied_plan(plan: SteeringPlan) -> schemas.LensSteering:
    return schemas.LensSteering(fingerprint=plan.fingerprint, vectors=dict(plan.vectors), warnings=list(plan.warnings))
