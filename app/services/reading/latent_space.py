"""Projects the activations of texts to two or three dimensions, layer by layer."""

from dataclasses import asdict, dataclass

from app.services.context import Context
from app.services.inputs import check_activations, pair_text
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, read_vectors
from steering.layer_indices import layer_indices
from steering.schemas.latent_space import LatentSpaceAnswer, LatentSpaceRequest, LayerMapAnswer, PathAnswer
from steering.workflows.reading import latent_space as workflow


@dataclass(frozen=True, slots=True, eq=False)
class PreparedMap:
    """A map whose names are resolved."""

    context: Context
    request: workflow.LatentSpaceRequest


def check(context: Context, body: LatentSpaceRequest) -> None:
    """Raises LimitExceeded for more texts, vectors or activations than the operator allows."""
    check_limit(len(body.texts), context.settings.max_texts, "texts", "texts")
    check_limit(len(body.vectors), context.settings.max_readouts, "vectors", "vectors")
    layers = layer_indices(body.layers, context.engine.info.layer_count)
    what = "activations (texts x layers x d_model)"
    check_activations(context.engine, context.settings, len(body.texts), len(layers), what, "layers")


async def prepare(context: Context, body: LatentSpaceRequest) -> PreparedMap:
    """Resolves the request. What only the projection can know (too few texts, say) it refuses itself."""
    check(context, body)
    request = workflow.LatentSpaceRequest(
        texts=tuple(map(pair_text, body.texts)),
        labels=None if body.labels is None else tuple(body.labels),
        groups=None if body.groups is None else tuple(body.groups),
        layers=layer_indices(body.layers, context.engine.info.layer_count),
        method=body.method,
        dims=body.dims,
        position=body.position,
        vectors=await context.model_vectors(body.vectors, "vectors"),
        path=body.path,
        seed=body.seed,
        embeddings=body.embeddings,
    )
    workflow.check_request(context.engine, request)
    numbers = len(request.texts) * (len(request.layers) + 1)
    context.admission.reserve(numbers * (context.engine.info.d_model * ACTIVATION_BYTES + SCORE_BYTES))
    return PreparedMap(context, request)


async def run(work: PreparedMap) -> workflow.LatentSpace:
    """Reads the texts and projects their activations."""
    return await workflow.latent_space(work.context.engine, work.request)


def answer(work: PreparedMap, found: workflow.LatentSpace) -> LatentSpaceAnswer:
    """Builds the response."""
    return LatentSpaceAnswer(
        model=work.context.engine.info.name,
        method=found.method,
        vectors=read_vectors(work.request.vectors or {}),
        layers=[_layer_map(one) for one in found.layers],
        embedding=None if found.embedding is None else _layer_map(found.embedding),
        path=None if found.path is None else PathAnswer.model_validate(asdict(found.path)),
        warnings=list(found.warnings),
    )


def _layer_map(found: workflow.LayerMap) -> LayerMapAnswer:
    return LayerMapAnswer.model_validate(asdict(found))
