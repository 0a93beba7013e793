"""/v1/dictionaries: searches the sparse autoencoders that the operator registered, and stores their features as vectors."""

from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter

from app.api.context import AdmittedDep, Context, ContextDep
from app.api.prompts import check_activations, encode_prompts, pair_text
from app.api.vectors import vector_answer
from app.core.admission import check_limit
from app.core.answers import ACTIVATION_BYTES
from app.core.requests import ApiRoute, needs
from app.core.settings import Settings
from steering.errors import InvalidRequest, NotFound, SteeringError
from steering.lab import dictionaries as workflow
from steering.lab.dictionaries import MAX_ACTIVATIONS, Dictionary, open_dictionary
from steering.model.info import ModelInfo
from steering.registry import unknown_name
from steering.schemas.latent_space import (
    DictionariesAnswer,
    DictionaryAnswer,
    DictionarySearchAnswer,
    DictionarySearchRequest,
    FeatureVectorRequest,
)
from steering.schemas.vectors import VectorAnswer
from steering.shapes import Direction
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.extract import registered

METHOD = "dictionary"

router = APIRouter(route_class=ApiRoute, tags=["reading"])


@router.get("/v1/dictionaries")
async def find(context: ContextDep) -> DictionariesAnswer:
    """Lists the dictionaries of the server."""
    info, known = context.engine.info, folders(context.settings)
    return DictionariesAnswer(
        data=await run_in_thread(lambda: [_answer(name, folder, info) for name, folder in known.items()])
    )


@router.post("/v1/dictionaries/{name}/search", openapi_extra=needs("generate"))
async def search(name: str, body: DictionarySearchRequest, context: AdmittedDep) -> DictionarySearchAnswer:
    """Finds features near a vector or active on texts, with the tokens that they promote and, if asked, whether they steer."""
    settings, engine = context.settings, context.engine
    check_limit(len(body.texts or ()) + len(body.against or ()), settings.max_texts, "texts", "texts")
    found = await dictionary_of(context, name)
    direction = None if body.vector is None else await _direction(context, found, body.vector)
    texts = tuple(map(pair_text, body.texts or ()))
    against = workflow.compared_texts(tuple(map(pair_text, body.against or ()))) if texts else ()
    ids = await encode_prompts(engine, (*texts, *against), "texts")
    tokens = sum(map(len, ids))
    check_activations(engine, settings, tokens, 1, "activations (tokens x d_model)", "texts")
    # at a time: before the activation function, its condition, and after it
    activations = 3 * min(max(map(len, ids), default=0) * found.features, MAX_ACTIVATIONS)
    context.admission.reserve((2 * found.features * found.d_model + activations) * ACTIVATION_BYTES)
    context.charge_tokens(tokens)
    features = await workflow.search(
        engine,
        found,
        vector=direction,
        texts=texts,
        against=against,
        top=body.top,
        min_output_score=body.min_output_score,
    )
    return DictionarySearchAnswer(dictionary=found.name, layer=found.layer, features=features)


@router.post("/v1/dictionaries/{name}/vectors", status_code=201)
async def store(name: str, body: FeatureVectorRequest, context: ContextDep) -> VectorAnswer:
    """Stores a feature's direction as the next version of a vector."""
    return vector_answer(await _feature_vector(context, name, body))


def folders(settings: Settings) -> dict[str, Path]:
    """Returns the registered folders by name, the last part of the path."""
    return {Path(one).name: Path(one) for one in settings.dictionaries}


def _answer(name: str, folder: Path, info: ModelInfo) -> DictionaryAnswer:
    try:
        found = open_dictionary(folder)
    except SteeringError as error:
        return DictionaryAnswer(name=name, problem=error.message)
    answer = DictionaryAnswer.model_validate(found, from_attributes=True)
    return answer.model_copy(update={"problem": workflow.problem_of(found, info)})


async def dictionary_of(context: Context, name: str) -> Dictionary:
    """Returns a dictionary that fits the loaded model. Raises NotFound, InvalidRequest, VectorModelMismatch."""
    known = folders(context.settings)
    if name not in known:
        raise NotFound(unknown_name("dictionary", name, tuple(known), "name"), param="name")
    found = await run_in_thread(open_dictionary, known[name])
    workflow.check_dictionary(found, context.engine.info)
    return found


async def _direction(context: Context, dictionary: Dictionary, name: str) -> Direction:
    vector = (await context.model_vectors((name,), "vector"))[name]
    if dictionary.layer not in vector.layers:
        raise InvalidRequest(
            f"{vector.id} has no direction at layer {dictionary.layer}, where dictionary {dictionary.name!r} is",
            param="vector",
        )
    return vector.at(dictionary.layer).direction


async def _feature_vector(context: Context, name: str, body: FeatureVectorRequest) -> ConceptVector:
    """Stores a row of the decoder as a vector at the dictionary's layer."""
    found = await dictionary_of(context, name)
    (row,) = await run_in_thread(found.rows, (body.feature,))
    about = body.description or f"feature {body.feature} of dictionary {name}"
    tags = tuple(dict.fromkeys((*body.tags, "saelens")))
    directions = {str(found.layer): row.tolist()}
    vector = await run_in_thread(registered, context.engine.info, body.name, directions, None, about, tags)
    provenance = {"dictionary": name, "feature": body.feature, "hook": found.hook}
    return await context.store.vectors.put(replace(vector, method=METHOD, provenance=provenance))
