"""Groups texts without labels by their activations."""

from dataclasses import dataclass

from app.services.context import Context
from app.services.inputs import check_activations, pair_text
from app.services.limits import check_limit
from app.services.reading.library import library_vectors
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES
from steering.layer_indices import layer_index
from steering.schemas.latent_space import (
    ClusterAnswer,
    ClustersAnswer,
    ClustersRequest,
    ExampleText,
    NearestVector,
    PairAnswer,
)
from steering.schemas.messages import Text
from steering.workflows.reading import clusters as workflow

EXAMPLE_CHARACTERS = 300
COPIES = 4
"""Copies of the activations that the server and its worker hold: as read, sent, in float64 and projected."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedClusters:
    """A request whose layer is resolved and whose vectors are at hand."""

    context: Context
    body: ClustersRequest
    request: workflow.ClustersRequest
    warnings: list[str]


def check(context: Context, body: ClustersRequest) -> None:
    """Raises LimitExceeded for more texts or activations than the operator allows."""
    check_limit(len(body.texts), context.settings.max_texts, "texts", "texts")
    check_activations(context.engine, context.settings, len(body.texts), 1, "activations (texts x d_model)", "texts")


async def prepare(context: Context, body: ClustersRequest) -> PreparedClusters:
    """Resolves the request. What only the clustering can know (too few texts, say) it refuses itself."""
    check(context, body)
    count = context.engine.info.layer_count
    layer = count // 2 if body.layer is None else layer_index(body.layer, count, param="layer")
    vectors, warnings = await library_vectors(context)
    context.admission.reserve(len(body.texts) * context.engine.info.d_model * ACTIVATION_BYTES * COPIES)
    context.admission.reserve(len(body.texts) * SCORE_BYTES)
    request = workflow.ClustersRequest(
        texts=tuple(map(pair_text, body.texts)),
        layer=layer,
        vectors=tuple(vectors),
        method=body.method,
        clusters=body.clusters,
        min_size=body.min_size,
        position=body.position,
        examples=body.examples,
        seed=body.seed,
    )
    return PreparedClusters(context, body, request, warnings)


async def run(work: PreparedClusters) -> workflow.Clusters:
    """Reads the texts and clusters them."""
    return await workflow.clusters(work.context.engine, work.request)


def answer(work: PreparedClusters, found: workflow.Clusters) -> ClustersAnswer:
    """Builds the response."""
    texts = work.body.texts
    return ClustersAnswer(
        model=work.context.engine.info.name,
        layer=work.request.layer,
        method=work.request.method,
        labels=list(found.labels),
        silhouette=found.silhouette,
        clusters=[
            ClusterAnswer(
                index=index,
                size=one.size,
                examples=[ExampleText(index=place, text=_beginning(texts[place])) for place in one.examples],
            )
            for index, one in enumerate(found.clusters)
        ],
        pairs=[
            PairAnswer(
                clusters=(one.first, one.second),
                distance=one.distance,
                nearest=None if one.vector is None else NearestVector(vector=one.vector, cosine=one.cosine),
            )
            for one in found.pairs
        ],
        warnings=[*work.warnings, *found.warnings],
    )


def _beginning(text: Text) -> str:
    return (text if isinstance(text, str) else text[-1].content)[:EXAMPLE_CHARACTERS]
