"""Scores continuations of a prompt, or whole texts, under steering."""

from starlette.responses import Response

from app.services.context import Context
from app.services.inputs import chat_messages, encode_prompts
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, applied_plan, json_in_thread
from steering.engine.api import Engine, Prompt
from steering.engine.prompts import check_context, encode_steered
from steering.errors import InvalidRequest
from steering.schemas.reading import ScoreAnswer, ScoreRequest
from steering.threads import run_in_thread
from steering.workflows.reading import score as workflow


async def score(context: Context, body: ScoreRequest) -> Response:
    """Scores every text. Everything that can be refused is refused before any device work."""
    engine, settings = context.engine, context.settings
    check_limit(len(body.texts or ()), settings.max_texts, "texts", "texts")
    check_limit(len(body.continuations or ()), settings.max_texts, "continuations", "continuations")
    check_limit(len(body.messages or ()), settings.max_messages, "messages", "messages")
    plan = await context.plan(body.steering)
    if body.texts is not None:
        rows, prompt_length = await encode_prompts(engine, body.texts, "texts"), 0
    else:
        prompt: Prompt = chat_messages(body.messages) if body.messages is not None else (body.prompt or "")
        before, plan = await encode_steered(engine.tokenizer, prompt, plan)
        rows, prompt_length = await _continued(engine, body, prompt, before, settings.max_scored_tokens), len(before)
    tokens = sum(map(len, rows))
    what = "tokens (the prompt counts for each continuation)"
    check_limit(tokens, settings.max_scored_tokens, what, "texts" if body.texts is not None else "continuations")
    context.charge_tokens(tokens)
    positions = [len(row) - max(prompt_length - 1, 0) for row in rows]  # of which logits are held
    logits = max(workflow.LOGITS_BOUND, max(positions) * engine.info.vocab_size)
    held = min(logits, sum(positions) * engine.info.vocab_size)
    context.admission.reserve(held * ACTIVATION_BYTES + tokens * SCORE_BYTES)
    found = await workflow.score(engine, rows, prompt_length, plan)
    return await json_in_thread(
        lambda: ScoreAnswer(
            model=engine.info.name, prompt_tokens=prompt_length, scores=found, steering=applied_plan(plan)
        )
    )


async def _continued(
    engine: Engine, body: ScoreRequest, prompt: Prompt, before: tuple[int, ...], most: int
) -> list[tuple[int, ...]]:
    """Returns the prompt's tokens, `before`, with those of each continuation."""
    assert body.continuations is not None
    check_limit(len(before) * len(body.continuations), most, "tokens (prompt x continuations)", "continuations")
    texts = body.continuations
    found = await run_in_thread(lambda: [workflow.continuation_ids(engine.tokenizer, prompt, text) for text in texts])
    for index, ids in enumerate(found):
        if not ids:
            raise InvalidRequest("the continuation has no token", param=f"continuations.{index}")
        check_context(len(before) + len(ids), 0, engine.info, param="continuations")
    return [(*before, *ids) for ids in found]
