"""/v1/vectors: register, combine, extract, distil, import, list, read, export, compare, describe, delete."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Annotated, Any

import structlog
import torch
from cachetools import LRUCache
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.context import AdmittedDep, Context, ContextDep, pair_set, pair_text
from app.api.jobs import Prepared, job_options, respond, written
from app.core.admission import SCORED_REQUESTS, check_limit, foreign, page_size
from app.core.answers import damage_warnings, json_in_thread
from app.core.errors import InsufficientScope
from app.core.gguf_format import write_control_vector
from app.core.requests import BINARY, ApiRoute, BinaryRoute, UploadRoute
from steering import errors
from steering.cards import MapForm, Recommended
from steering.concepts import CONCEPTS, ConceptEntry
from steering.concepts.described import ASSISTANT, described
from steering.engine.api import TrainingSettings
from steering.engine.capabilities import reading_passes
from steering.engine.prompts import encode_prompt
from steering.errors import InvalidRequest, StoreCorrupt, VectorNotFound
from steering.extraction.card import layers_in_window
from steering.lab import distil as distilling
from steering.lab.evaluations import with_shipped_evidence
from steering.layer_indices import layer_index, layer_indices
from steering.maps import LowRankMap
from steering.pairs import PairSet
from steering.plan.resolve import check_model
from steering.registry import unknown_name
from steering.schemas import vectors as schemas
from steering.schemas.base import WaitQuery
from steering.schemas.extraction import DistilRequest, ExtractRequest
from steering.schemas.steering import by_layer
from steering.schemas.vectors import SimilarAnswer, SimilarVector, VectorAnswer, VectorPageAnswer, VersionQuery
from steering.store.blob import check_imported, decode, encode
from steering.store.records import Page
from steering.store.store import NamespaceStore
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId, VectorSummary, check_name, cosine
from steering.workflows.describe import INSTRUCTION, WRITING, Description
from steering.workflows.describe import describe as written_pairs
from steering.workflows.extract import (
    TRAINED,
    ExtractionRequest,
    check_method,
    combined,
    make_vector,
    registered,
    trained_pairs,
    with_recommendation,
)
from steering.workflows.generate import Progress
from steering.workflows.texts import capture_prompts, default_position, text_lengths, training_tokens

log = structlog.get_logger(__name__)

_COPIED = ("namespace", "name", "version", "id", "description", "model", "d_model", "method", "sha256", "created_at")
"""Fields of a vector that its description has too, unchanged."""
_PAGE = 100
MAX_PAIRS = 16_384
"""Pairs whose cosines are kept: a dozen bytes for each layer."""
NUMBER_BYTES = 64
"""Memory of a number that is written as text: a Python float and about 20 characters."""

router = APIRouter(route_class=ApiRoute, tags=["vectors"])
uploads = APIRouter(route_class=UploadRoute, tags=["vectors"])
files = APIRouter(route_class=BinaryRoute, tags=["vectors"])


@uploads.post("/v1/vectors", status_code=201)
async def register(body: schemas.RegisterRequest, context: ContextDep) -> VectorAnswer:
    """Stores given directions and maps as the next version of a name."""

    def build() -> ConceptVector:
        maps = {layer: _map_of(layer, given) for layer, given in (body.maps or {}).items()}
        info, directions = context.engine.info, body.directions or {}
        return registered(info, body.name, directions, body.scale, body.description, body.tags, maps)

    vector = await run_in_thread(build)
    return vector_answer(await context.store.vectors.put(vector))


@router.post("/v1/vectors/combine", status_code=201)
async def combine(body: schemas.CombineRequest, context: ContextDep) -> VectorAnswer:
    """Stores a weighted sum of vectors, made orthogonal to others if requested."""
    terms = [(await context.vector(term.vector, "terms"), term.weight) for term in body.terms]
    others = [await context.vector(name, "orthogonal_to") for name in body.orthogonal_to]
    vector = await run_in_thread(combined, context.engine.info, body.name, terms, others, body.description, body.tags)
    return vector_answer(await context.store.vectors.put(vector))


@files.post("/v1/vectors/import", status_code=201, openapi_extra={"requestBody": {"required": True, "content": BINARY}})
async def import_vector(
    request: Request, query: Annotated[schemas.ImportQuery, Query()], context: ContextDep
) -> VectorAnswer:
    """Stores the vector in one safetensors file."""
    content, info = await request.body(), context.engine.info

    def read() -> ConceptVector:
        vector = decode(content, name=query.name, model=info.name, model_fingerprint=info.fingerprint)
        check_imported(vector)
        check_model(vector, info)
        for layer in vector.layers:
            layer_index(layer, info.layer_count, param="vector", error=errors.VectorModelMismatch)
        return with_recommendation(vector, info)

    vector = await run_in_thread(read)
    request.state.described = {"name": vector.name}  # for the audit log
    return vector_answer(await context.store.vectors.put(vector))


@router.get("/v1/vectors", response_model=VectorPageAnswer)
async def find(query: Annotated[schemas.VectorQuery, Query()], context: ContextDep) -> Response:
    """Lists the newest version of each name, by name."""
    limit = page_size(query, context.settings.max_page)
    wanted = {"tag": query.tag, "method": query.method, "search": query.search}
    page = await context.store.vectors.find(limit, query.cursor, **wanted)

    def build() -> VectorPageAnswer:
        found, warnings = [vector_answer(vector) for vector in page.items], damage_warnings(page.damaged)
        return VectorPageAnswer(data=found, next_cursor=page.next_cursor, warnings=warnings)

    return await json_in_thread(build)


@router.get("/v1/vectors/{name}")
async def read(name: str, query: Annotated[VersionQuery, Query()], context: ContextDep) -> VectorAnswer:
    """Returns metadata and quality card of `name` or `name@version`."""
    return vector_answer(await context.vector(name, "name", query.version))


@router.get("/v1/vectors/{name}/directions", response_model=dict[str, list[float]])
async def read_directions(
    name: str, query: Annotated[schemas.DirectionsQuery, Query()], context: ContextDep
) -> Response:
    """Returns the unit directions by layer."""
    vector = await _written(context, name, query.version)
    layers = sorted(vector.layers) if query.layers is None else [int(layer) for layer in query.layers.split(",")]
    return await json_in_thread(lambda: _directions(vector, layers))


@router.get("/v1/vectors/{name}/export", response_class=Response)
async def export(name: str, query: Annotated[schemas.ExportQuery, Query()], context: ContextDep) -> Response:
    """Returns the vector as a file."""
    vector = await _written(context, name, query.version)
    return await run_in_thread(_file, vector, query.format, query.layers)


@router.get("/v1/vectors/{name}/similar")
async def similar(name: str, query: Annotated[VersionQuery, Query()], context: ContextDep) -> SimilarAnswer:
    """Returns the cosine to every other vector of the same model."""
    vector = await context.vector(name, "name", query.version)
    return await similar_vectors(context.store, vector, context.state[Cosines])


@router.get("/v1/vectors/{name}/versions")
async def versions(
    name: str, query: Annotated[schemas.VersionsQuery, Query()], context: ContextDep
) -> schemas.VectorVersionsAnswer:
    """Lists the versions of a vector, newest first."""
    limit = page_size(query, context.settings.max_page)
    try:
        page = await context.store.vectors.versions(check_name(name), limit, query.before)
    except VectorNotFound as error:
        raise await context.with_suggestion(error, name) from None
    data, warnings = list(map(_version, page.versions)), damage_warnings(page.damaged)
    return schemas.VectorVersionsAnswer(data=data, next_before=page.next_before, warnings=warnings)


@router.patch("/v1/vectors/{name}")
async def describe(name: str, body: schemas.DescribeRequest, context: ContextDep) -> VectorAnswer:
    """Changes description and tags, never the directions."""
    try:
        return vector_answer(await context.store.vectors.describe(name, body.description, body.tags))
    except VectorNotFound as error:
        raise await _refusal(context, name, error) from None


@router.delete("/v1/vectors/{name}", status_code=204)
async def delete(name: str, query: Annotated[schemas.DeleteQuery, Query()], context: ContextDep) -> None:
    """Deletes all versions, or one; refused while a profile, the default or the policy needs it, unless forced."""
    admin = "admin" in context.key.scopes
    try:
        await context.store.vectors.delete(name, query.force, query.version, documents_too=admin)
    except errors.VectorInUse:
        if query.force:
            reason = f"the policy uses vector {name!r}; only a key with the scope 'admin' may force this delete"
            raise InsufficientScope(reason, param="force") from None
        raise
    except VectorNotFound as error:
        raise await _refusal(context, name, error) from None


@uploads.post("/v1/vectors/extract", **job_options(201, VectorAnswer, "the vector"))
async def extract(body: ExtractRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Reads every text once and fits a direction at every layer requested, measured on held-out topics."""
    job = await _prepare_extraction(context, body)
    return await respond(context, "extract", body, job, query.wait, 201, part="vector")


def _map_of(layer: str, given: schemas.MapNumbers) -> LowRankMap:
    """Returns a map that a caller gave. Raises VectorModelMismatch where its directions differ in length."""
    rows = (*given.read, *given.write)
    if len({len(row) for row in rows}) > 1:
        lengths = sorted({len(row) for row in rows})
        raise errors.VectorModelMismatch(
            f"layer {layer}: the directions of the map have {lengths} numbers", param="maps"
        )
    read, write = torch.tensor(given.read), torch.tensor(given.write)
    return LowRankMap.of(read, write, None if given.bias is None else torch.tensor(given.bias), given.activation)


def _map_numbers(vector: ConceptVector) -> dict[str, schemas.MapNumbers]:
    found = {layer: entry.map for layer, entry in vector.layers.items() if entry.map is not None}
    return {
        str(layer): schemas.MapNumbers.model_validate(
            {name: getattr(one, name).tolist() for name in ("read", "write", "bias")} | {"activation": one.activation}
        )
        for layer, one in found.items()
    }


@router.post("/v1/vectors/distil", **job_options(201, VectorAnswer, "the vector"))
async def distil(body: DistilRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Distils an instruction into a vector with a map: what it changes in the model's own answers, without its tokens."""
    job = await _prepare_distil(context, body)
    return await respond(context, "distil", body, job, query.wait, 201, part="vector")


def vector_answer(vector: VectorSummary) -> VectorAnswer:
    """Describes a vector without its directions."""
    return VectorAnswer(**_fields(vector))


def _fields(vector: VectorSummary) -> dict[str, Any]:
    layers = vector.layers
    means = {at: (one.positive_mean, one.negative_mean) for at, one in layers.items() if one.centred}
    kl = {at: (one.kl_negative, one.kl_positive) for at, one in layers.items()}
    return {
        **{name: getattr(vector, name) for name in _COPIED},
        "tags": list(vector.tags),
        "layers": sorted(layers),
        "scale": by_layer({at: one.scale for at, one in layers.items()}),
        "means": by_layer(means),
        "kl": by_layer({at: (low and -low, high) for at, (low, high) in kl.items() if (low, high) != (None, None)}),
        "centred": len(means) == len(layers),
        "maps": {
            str(at): MapForm(rank=one.map.rank, activation=one.map.activation)
            for at, one in sorted(layers.items())
            if one.map is not None
        },
        "recommended": vector.recommended or Recommended(vector.recommended_layers()),
        "quality": vector.quality,
        "provenance": dict(vector.provenance),
    }


def _version(vector: VectorSummary) -> schemas.VectorVersionAnswer:
    described = vector_answer(vector)
    layers = vector.recommended_layers()
    card = None if described.quality is None else described.quality.layers.get(layers[len(layers) // 2])
    return schemas.VectorVersionAnswer.model_validate(
        {**dict(described), "auroc": None if card is None else card.auroc}
    )


def _directions(vector: ConceptVector, layers: Sequence[int]) -> dict[str, list[float]]:
    return {str(layer): vector.at(layer).direction.tolist() for layer in layers}


async def _written(context: Context, name: str, version: int | None) -> ConceptVector:
    """Returns a vector that is to be written, whose memory is reserved."""
    vector = await context.vector(name, "name", version)
    rows = sum(1 + (0 if entry.map is None else 2 * entry.map.rank) for entry in vector.layers.values())
    context.admission.reserve(rows * vector.d_model * NUMBER_BYTES)
    return vector


async def _refusal(context: Context, name: str, error: VectorNotFound) -> errors.SteeringError:
    """Returns the error for changing a vector that the namespace of the request does not have: it may be a shared one."""
    try:
        owner = (await context.store.vectors.versions(name, 1)).namespace
    except VectorNotFound:
        return await context.with_suggestion(error, name)
    return error if owner == context.namespace else foreign("vector", name, owner, context.namespace)


def _file(vector: ConceptVector, form: str, layers: str | None) -> Response:
    """Returns the vector as one file. Raises UnsupportedParameter for an unknown format, InvalidRequest for `layers`
    that cannot be chosen in this format or that the vector lacks."""

    def as_json() -> bytes:
        directions = _directions(vector, sorted(vector.layers))
        export = schemas.VectorExport(**_fields(vector), directions=directions, map_numbers=_map_numbers(vector))
        return export.model_dump_json().encode()

    writers: Mapping[str, Callable[[], bytes]] = {
        "safetensors": lambda: encode(vector),
        "gguf": lambda: _control_vector(vector, layers or "recommended"),
        "json": as_json,
    }
    if form not in writers:
        raise errors.UnsupportedParameter(
            f"format must be 'safetensors', 'gguf' or 'json', got {form[:40]!r}", param="format"
        )
    if layers is not None and form != "gguf":
        raise InvalidRequest(
            f"layers can be chosen for format 'gguf' only; {form} contains all of them", param="layers"
        )
    return Response(
        writers[form](),
        media_type="application/json" if form == "json" else "application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{vector.name}-{vector.version}.{form}"'},
    )


def _control_vector(vector: ConceptVector, layers: str) -> bytes:
    """Returns a llama.cpp control vector. Layer 0, which llama.cpp cannot steer, is left out unless it was named."""
    if layers in ("all", "recommended"):
        known = vector.layers if layers == "all" else vector.recommended_layers()
        chosen = [layer for layer in known if layer > 0]
    else:
        chosen = [int(layer) for layer in layers.split(",")]
    if missing := sorted(set(chosen) - set(vector.layers)):
        raise InvalidRequest(f"{vector.id} has layers {sorted(vector.layers)}, not {missing}", param="layers")
    directions = {layer: vector.layers[layer].direction.tolist() for layer in chosen}
    return write_control_vector(directions, {layer: vector.layers[layer].scale for layer in chosen}, vector.model)


class Cosines:
    """Cosines of pairs of vectors, kept by their digests: a version never changes, so its directions are read once."""

    def __init__(self) -> None:
        self._found: LRUCache[tuple[str, str], Mapping[int, float]] = LRUCache(MAX_PAIRS)

    async def of(self, vector: ConceptVector, other: VectorSummary, store: NamespaceStore) -> Mapping[int, float]:
        """Returns the cosine at every layer that both have. Raises VectorNotFound, StoreCorrupt."""
        key = (min(vector.sha256, other.sha256), max(vector.sha256, other.sha256))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = cosine(vector, await store.vectors.get(other.name, other.version))
        return found


async def vector_pages(store: NamespaceStore) -> AsyncIterator[Page[VectorSummary]]:
    """Yields the newest version of each visible name, by name, a page at a time."""
    cursor: str | None = None
    while True:
        page = await store.vectors.find(_PAGE, cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


async def similar_vectors(store: NamespaceStore, vector: ConceptVector, cosines: Cosines) -> SimilarAnswer:
    """Compares with every other vector of the model: the most similar first, by absolute mean cosine over shared
    layers. Vectors of other models are not read. A damaged vector is left out and named in a warning; one that is
    deleted meanwhile is left out."""
    found, damaged = list[SimilarVector](), list[str]()
    async for page in vector_pages(store):
        damaged += [one for one in page.damaged if VectorId.parse(one).name != vector.name]
        for other in page.items:
            if other.name == vector.name or other.model_fingerprint != vector.model_fingerprint:
                continue
            try:
                layers = await cosines.of(vector, other, store)
            except VectorNotFound:
                continue
            except StoreCorrupt as error:
                log.warning("left_out_of_similar", code=error.code, vector=other.id)
                damaged.append(other.id)
                continue
            if layers:
                mean = fmean(layers.values())
                found.append(SimilarVector(namespace=other.namespace, id=other.id, cosine=by_layer(layers), mean=mean))
    found.sort(key=lambda one: (-abs(one.mean), one.id))
    return SimilarAnswer(data=found, warnings=damage_warnings(damaged))


async def _prepare_extraction(context: Context, body: ExtractRequest) -> Prepared:
    """Checks the request and returns what runs it. Everything that can be refused at once is refused here. Raises
    LimitExceeded for too many texts, InvalidRequest for a name, method or layers that cannot be used."""
    check_name(body.name)
    training = None if body.training is None else TrainingSettings(**body.training.model_dump(exclude_none=True))
    card_max = body.card_position is not None
    check_method(context.engine, body.method, training, paired=body.positive is None, card_max=card_max)
    passes = reading_passes(context.engine, body.position or "last") + card_max
    layer_indices(body.layers, context.engine.info.layer_count)
    for param in ("pairs", "positive", "negative"):
        check_limit(len(getattr(body, param) or ()), context.settings.max_pairs, "texts", param)
    source: ExtractionRequest | Description
    if (description := _description(body)) is not None:
        source = description
        description.check(context.engine)
        _check_read(context, body, description.answers)
        more = await _training_tokens(context, body, training, description)
        # each answer is written, and read in so many passes
        answers = description.answers * (1 + passes)
        tokens = await context.answer_tokens(None, answers, WRITING.max_tokens, more=more)
    else:
        if body.positive is None or body.negative is None:
            pairs = await run_in_thread(pair_set, body.concept, body.pairs)
        else:
            pairs = await run_in_thread(
                PairSet,
                tuple(map(pair_text, body.positive)),
                tuple(map(pair_text, body.negative)),
                body.positive_topics or (),
                paired=False,
                negative_topics=body.negative_topics or (),
            )
        source = _workflow_request(context, body, pairs)
        await _check_longest(context, source)
        more = await _training_tokens(context, body, training, pairs)
        reads = (*pairs.positive, *pairs.negative) * passes
        tokens = await context.answer_tokens(None, 0, 0, reads, more=more)

    async def run(progress: Progress) -> dict[str, Any]:
        """Extracts and stores the vector. The texts of a description are generated first. Cancelling before that stores nothing."""
        asked = source
        if isinstance(asked, Description):
            texts = await written_pairs(context.engine, asked, progress=progress)
            asked = _workflow_request(context, body, texts.pairs, texts.warnings)
        vector = await make_vector(context.engine, asked, training=training, progress=progress)
        if body.concept is not None and body.concept in CONCEPTS:
            vector = with_shipped_evidence(vector, body.concept)
        elif body.concept is not None:
            vector = replace(vector, provenance={**vector.provenance, "concept": body.concept})
        stored = await written(lambda: context.store.vectors.put(vector))
        return {"vector": vector_answer(stored).model_dump(mode="json")}

    return tokens, run


def _description(body: ExtractRequest) -> Description | None:
    """Returns what the model is to write, where the texts are described in words."""
    if body.describe is not None:
        return Description(body.describe.trait, (body.describe.opposite,))
    entry = described().get(body.concept or "")
    return None if entry is None else Description.of(body.concept or "", entry)


def _about(body: ExtractRequest | DistilRequest) -> str:
    """Returns the description of the vector: as given, or that of the concept in words from which it is made."""
    entry = described().get(body.concept or "")
    return body.description or ("" if entry is None else entry.description)


async def _prepare_distil(context: Context, body: DistilRequest) -> Prepared:
    """Checks the request and returns what runs it. Raises LimitExceeded for too many prompts or activations, InvalidRequest for a
    name, layers, prompts or a concept that cannot be used, and InsufficientScope: the vector steers while its strength is sought."""
    context.limits.check_own_steering()
    context.limits.check_new(body.name, context.namespace)
    fields = body.model_dump(exclude={"concept"}) | {"description": _about(body)}
    if body.concept is not None:
        fields["instruction"] = INSTRUCTION.format(pole=_instructed(body.concept).positive)
    request = distilling.DistilRequest(**fields)
    layers = distilling.check_distil(context.engine, request)
    check_limit(len(request.asked), context.settings.max_pairs, "prompts", "prompts")
    what = "activations (prompts x tokens x layers x d_model)"
    asked = len(request.asked)
    context.check_activations(distilling.residuals_held(asked, body.max_tokens), len(layers), what, "prompts")
    # each answer is written once, and read with the instruction, without, and again for each layer after the first; some are compared
    compared, most = min(asked, distilling.COMPARED), min(body.max_tokens, distilling.TOKENS)
    told = (2 * asked + compared) * len(await encode_prompt(context.engine.tokenizer, request.instruction))
    more = told + distilling.COMPARING * compared * most
    reads = (body.prompts or ())[:compared] * distilling.COMPARING
    tokens = await context.answer_tokens(body.prompts, asked * (2 + len(layers)), body.max_tokens, reads, more=more)

    async def run(progress: Progress) -> dict[str, Any]:
        vector = await distilling.distil(context.engine, request, progress=progress)
        stored = await written(lambda: context.store.vectors.put(vector))
        return {"vector": vector_answer(stored).model_dump(mode="json")}

    return tokens, run


def _instructed(concept: str) -> ConceptEntry:
    """Returns a concept whose positive pole is an instruction. Raises ConceptNotFound for one that is unknown, InvalidRequest for one with
    pairs, and for the assistant, who has no instruction."""
    known = {name: entry for name, entry in described().items() if name != ASSISTANT}
    if concept in (ASSISTANT, *CONCEPTS):
        raise InvalidRequest(f"concept {concept!r} has no instruction; extract it", param="concept")
    if concept not in known:
        raise errors.ConceptNotFound(unknown_name("concept", concept, list(known), "concept"), param="concept")
    return known[concept]


def _check_read(context: Context, body: ExtractRequest, texts: int) -> None:
    """Raises LimitExceeded when too many activations would be read."""
    layers = context.engine.info.layer_count if body.layers == "all" else len(body.layers)
    context.check_activations(texts, layers, "activations (texts x layers x d_model)", "layers")


async def _check_longest(context: Context, request: ExtractionRequest) -> None:
    """Raises LimitExceeded where one text takes too much: all its tokens at once, which `phase` and `card_position` read, or a step of
    training."""
    engine, texts = context.engine, (*request.pairs.positive, *request.pairs.negative)
    if request.method == TRAINED:
        await run_in_thread(trained_pairs, engine, request)
    if request.phase is None and not request.card_max:
        return
    layers = layer_indices(request.layers, engine.info.layer_count)
    read = layers if request.phase else layers_in_window(layers, engine.info.layer_count)
    lengths = await run_in_thread(
        lambda: [len(engine.tokenizer.encode(one.prompt)) for one in capture_prompts(engine, texts)]
    )
    what = "activations of the longest text (tokens x layers x d_model)"
    context.check_activations(max(lengths), len(read), what, "layers")


async def _training_tokens(
    context: Context, body: ExtractRequest, training: TrainingSettings | None, texts: PairSet | Description
) -> int:
    """Returns the tokens of the training; 0 for another method. Raises LimitExceeded."""
    if body.method != TRAINED:
        return 0
    engine, layers = context.engine, 1 if body.layers == "all" else len(body.layers)

    def counted() -> int:
        if isinstance(texts, Description):
            lengths = [WRITING.max_tokens] * texts.answers
        else:
            lengths = text_lengths(engine, texts)
        return training_tokens(engine, lengths, training or TrainingSettings(), layers)

    tokens = await run_in_thread(counted)
    check_limit(tokens, SCORED_REQUESTS * context.settings.max_scored_tokens, "tokens of the training", "training")
    return tokens


def _workflow_request(
    context: Context, body: ExtractRequest, pairs: PairSet, notes: tuple[str, ...] = ()
) -> ExtractionRequest:
    """Returns what the workflow takes. Raises what `_check_read` raises."""
    _check_read(context, body, len(pairs.positive) + len(pairs.negative))
    given = body.model_dump(include={"name", "method", "layers", "phase", "holdout", "seed", "tags"})
    given["description"] = _about(body)
    position = "mean" if body.phase else body.position or default_position(pairs)
    card_max = body.card_position is not None
    return ExtractionRequest(pairs=pairs, position=position, notes=notes, card_max=card_max, **given)
