"""Predicts the next token at every layer and token of a prompt, plain and steered."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.services.context import Context
from app.services.inputs import check_activations, prompt_of
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, applied_plan, read_tokens
from steering.engine.capabilities import unembedding_of
from steering.engine.prompts import check_context, encode_steered
from steering.layer_indices import layer_indices
from steering.schemas.reading import (
    LensLayerAnswer,
    LogitLensAnswer,
    LogitLensRequest,
    PredictionAnswer,
)
from steering.workflows.reading import logit_lens as workflow


@dataclass(frozen=True, slots=True, eq=False)
class PreparedLens:
    """A logit lens whose names are resolved and whose prompt is tokenized."""

    context: Context
    request: workflow.LogitLensRequest


def check(context: Context, body: LogitLensRequest) -> None:
    """Raises LimitExceeded for too many predictions, UnsupportedParameter for an engine that cannot unembed."""
    unembedding_of(context.engine)
    check_limit(body.top_k, context.settings.max_top_logprobs, "predictions a token", "top_k")


async def prepare(context: Context, body: LogitLensRequest) -> PreparedLens:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    check(context, body)
    settings, engine = context.settings, context.engine
    layers = layer_indices(body.layers, engine.info.layer_count)
    prompt = prompt_of(body, settings)
    plan = await context.plan(body.steering)
    ids, plan = await encode_steered(engine.tokenizer, prompt, plan)
    check_context(len(ids), 0, engine.info, param="prompt" if body.prompt is not None else "messages")
    tokens = len(ids) * (1 if plan.empty else 2)
    check_activations(engine, settings, tokens, len(layers), "activations (tokens x layers x d_model)", "layers")
    predictions = tokens * len(layers) * body.top_k
    check_limit(predictions, settings.max_predictions, "predictions (tokens x layers x top_k)", "layers")
    logits = tokens * engine.info.vocab_size
    activations = tokens * len(layers) * engine.info.d_model
    context.admission.reserve((logits + activations) * ACTIVATION_BYTES + predictions * SCORE_BYTES)
    return PreparedLens(context, workflow.LogitLensRequest(ids, plan, layers, body.top_k))


async def run(work: PreparedLens) -> workflow.LogitLens:
    """Reads the prompt and unembeds every layer."""
    return await workflow.logit_lens(work.context.engine, work.request)


def answer(work: PreparedLens, found: workflow.LogitLens) -> LogitLensAnswer:
    """Builds the response: predictions by layer and token."""
    return LogitLensAnswer(
        model=work.context.engine.info.name,
        tokens=read_tokens(found.token_ids, found.tokens),
        layers=[
            LensLayerAnswer(
                layer=one.layer,
                plain=_rows(one.plain),
                steered=None if one.steered is None else _rows(one.steered),
            )
            for one in found.layers
        ],
        steering=applied_plan(work.request.plan),
    )


def _rows(rows: Sequence[workflow.Row]) -> list[list[PredictionAnswer]]:
    return [[PredictionAnswer(id=one.token_id, text=one.text, logprob=one.logprob) for one in row] for row in rows]
