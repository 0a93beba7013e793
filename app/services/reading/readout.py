"""Measures texts against vectors, token by token and layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.services.context import Context
from app.services.inputs import check_activations, check_texts, encode_texts
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, read_tokens, read_vectors
from steering.plan.layers import resolve_layers
from steering.schemas.base import by_layer
from steering.schemas.reading import LayerScores, ReadoutAnswer, ReadoutRequest, TextReadoutAnswer
from steering.workflows.reading import readout as workflow


@dataclass(frozen=True, slots=True, eq=False)
class PreparedReadout:
    """A readout whose names are resolved and whose texts are tokenized."""

    context: Context
    request: workflow.ReadoutRequest


def check(context: Context, body: ReadoutRequest) -> None:
    """Raises LimitExceeded for more texts or vectors than the operator allows."""
    check_texts(context.settings, body)
    check_limit(len(body.vectors), context.settings.max_readouts, "vectors", "vectors")


async def prepare(context: Context, body: ReadoutRequest) -> PreparedReadout:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    check(context, body)
    vectors = await context.model_vectors(body.vectors, "vectors")
    count = context.engine.info.layer_count
    layers = {layer for vector in vectors.values() for layer in resolve_layers(body.layers, vector, count)}
    ids = await encode_texts(context.engine, body)
    what = "activations (tokens x layers x d_model)"
    check_activations(context.engine, context.settings, sum(map(len, ids)), len(layers), what, "texts")
    context.charge_tokens(sum(map(len, ids)))
    numbers = sum(map(len, ids)) * len(layers)
    context.admission.reserve(numbers * (context.engine.info.d_model * ACTIVATION_BYTES + len(vectors) * SCORE_BYTES))
    return PreparedReadout(context, workflow.ReadoutRequest(tuple(ids), vectors, body.layers))


async def run(work: PreparedReadout) -> Sequence[workflow.TextReadout]:
    """Reads every text."""
    return await workflow.readout(work.context.engine, work.request)


def answer(work: PreparedReadout, found: Sequence[workflow.TextReadout]) -> ReadoutAnswer:
    """Builds the response: scores by vector and layer."""
    return ReadoutAnswer(
        model=work.context.engine.info.name,
        vectors=read_vectors(work.request.vectors),
        texts=[
            TextReadoutAnswer(tokens=read_tokens(one.token_ids, one.tokens), readout=_by_vector(one.readouts))
            for one in found
        ],
    )


def _by_vector(found: Sequence[workflow.LayerReadout]) -> dict[str, dict[str, LayerScores]]:
    by_vector: dict[str, dict[int, LayerScores]] = {}
    for one in found:
        scores = LayerScores(scores=list(one.scores), mean=one.mean, max=one.max, last=one.last, centred=one.centred)
        by_vector.setdefault(one.vector, {})[one.layer] = scores
    return {name: by_layer(layers) for name, layers in by_vector.items()}
