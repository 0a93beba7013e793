"""Predicts the next token at every layer and token of a prompt, plain and steered."""

from starlette.responses import Response

from app.services.context import Context
from app.services.inputs import check_activations, prompt_of
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, applied_plan, json_in_thread
from steering.engine.capabilities import unembedding_of
from steering.engine.prompts import check_context, encode_steered
from steering.layer_indices import layer_indices
from steering.schemas.reading import (
    LogitLensAnswer,
    LogitLensRequest,
)
from steering.workflows.reading import logit_lens as workflow
from steering.workflows.reading.readout import read_tokens


async def logit_lens(context: Context, body: LogitLensRequest) -> Response:
    """Reads the prompt and unembeds every layer. Everything that can be refused is refused before any device work."""
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
    found = await workflow.logit_lens(engine, ids, plan, layers, body.top_k)
    return await json_in_thread(
        lambda: LogitLensAnswer(
            model=engine.info.name,
            tokens=read_tokens(engine.tokenizer, ids),
            layers=found,
            steering=applied_plan(plan),
        )
    )
