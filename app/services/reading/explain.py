"""Finds the concepts of the library that stand out in texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.services.context import Context
from app.services.inputs import check_activations, check_texts, encode_texts, pair_text
from app.services.reading.library import library_vectors
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES
from steering.concepts.loader import load_neutral_texts
from steering.engine.api import Engine, Prompt
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.schemas.reading import (
    CarryingTokenAnswer,
    ExplainAnswer,
    ExplainedTextAnswer,
    ExplainRequest,
    ReadVector,
    StandingConceptAnswer,
)
from steering.workflows.reading import explain as workflow

NEUTRAL_TOKENS = 3_000
"""Upper bound of the tokens of neutral text: 64 conversations of two short messages."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedExplanation:
    """A request whose vectors are at hand and whose texts are counted."""

    context: Context
    body: ExplainRequest
    prompts: tuple[Prompt, ...]
    axes: list[workflow.Axis]
    warnings: list[str]


async def prepare(context: Context, body: ExplainRequest) -> PreparedExplanation:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    check_texts(context.settings, body)
    engine = context.engine
    layers = None if body.layers is None else layer_indices(tuple(body.layers), engine.info.layer_count)
    vectors, warnings = await library_vectors(context)
    axes = workflow.axes_of(vectors, layers)
    if not axes:
        raise InvalidRequest(
            "no vector of the library has a direction there; extract one first (POST /v1/vectors/extract)",
            param="layers" if vectors else None,
        )
    ids = await encode_texts(engine, body)
    tokens = sum(map(len, ids))
    read = len({axis.layer for axis in axes})
    check_activations(engine, context.settings, tokens, read, "activations (tokens x layers x d_model)", "texts")
    context.charge_tokens(tokens)
    # Neutral text is read by the first request for a vector; it is counted for every one.
    held, longest = tokens + NEUTRAL_TOKENS, max(NEUTRAL_TOKENS, *map(len, ids))
    context.admission.reserve((held * read * engine.info.d_model + longest * len(axes)) * ACTIVATION_BYTES)
    context.admission.reserve(len(ids) * body.top * workflow.CARRYING_TOKENS * SCORE_BYTES)
    return PreparedExplanation(context, body, tuple(map(pair_text, body.all_texts)), axes, warnings)


async def run(work: PreparedExplanation) -> Sequence[workflow.ExplainedText]:
    """Reads every text, and neutral text where its statistics are not known yet."""
    return await workflow.explain(
        work.context.engine,
        work.prompts,
        work.axes,
        work.context.state.neutral,
        threshold=work.body.threshold,
        most=work.body.top,
    )


def answer(work: PreparedExplanation, found: Sequence[workflow.ExplainedText]) -> ExplainAnswer:
    """Builds the response."""
    engine = work.context.engine
    vectors = {axis.vector.id: axis.vector for axis in work.axes}
    return ExplainAnswer(
        model=engine.info.name,
        vectors={name: ReadVector(id=name, sha256=vector.sha256) for name, vector in vectors.items()},
        neutral=len(load_neutral_texts()),
        texts=[
            ExplainedTextAnswer(tokens=len(one.token_ids), concepts=[_concept(engine, each) for each in one.concepts])
            for one in found
        ],
        warnings=work.warnings,
    )


def _concept(engine: Engine, one: workflow.StandingConcept) -> StandingConceptAnswer:
    tokens = [
        CarryingTokenAnswer(
            index=token.index, id=token.token_id, text=engine.tokenizer.token_text(token.token_id), z=token.z
        )
        for token in one.tokens
    ]
    return StandingConceptAnswer(vector=one.vector, layer=one.layer, score=one.score, z=one.z, tokens=tokens)
