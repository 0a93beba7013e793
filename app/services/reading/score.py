"""Scores continuations of a prompt, or whole texts, under steering."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.services.context import Context
from app.services.inputs import chat_messages, encode_prompts
from app.services.limits import check_limit
from app.services.reading.responses import ACTIVATION_BYTES, SCORE_BYTES, applied_plan
from steering.engine.api import Engine, Prompt
from steering.engine.prompts import check_context, encode_steered
from steering.errors import InvalidRequest
from steering.schemas.reading import ScoreAnswer, ScoredText, ScoreRequest
from steering.threads import run_in_thread
from steering.workflows.reading import score as workflow


@dataclass(frozen=True, slots=True, eq=False)
class PreparedScore:
    """A request whose steering is resolved and whose texts are tokenized."""

    context: Context
    request: workflow.ScoreRequest


def check(context: Context, body: ScoreRequest) -> None:
    """Raises LimitExceeded for more texts than the operator allows."""
    check_limit(len(body.texts or ()), context.settings.max_texts, "texts", "texts")
    check_limit(len(body.continuations or ()), context.settings.max_texts, "continuations", "continuations")
    check_limit(len(body.messages or ()), context.settings.max_messages, "messages", "messages")


async def prepare(context: Context, body: ScoreRequest) -> PreparedScore:
    """Resolves the request. Everything that can be refused is refused here, before any device work."""
    check(context, body)
    engine, settings = context.engine, context.settings
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
    return PreparedScore(context, workflow.ScoreRequest(tuple(rows), prompt_length, plan))


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


async def run(work: PreparedScore) -> Sequence[workflow.ScoredRow]:
    """Reads every text."""
    return await workflow.score(work.context.engine, work.request)


def answer(work: PreparedScore, found: Sequence[workflow.ScoredRow]) -> ScoreAnswer:
    """Builds the response."""
    engine = work.context.engine
    return ScoreAnswer(
        model=engine.info.name,
        prompt_tokens=work.request.prompt_length,
        scores=[_scored(engine, one) for one in found],
        steering=applied_plan(work.request.plan),
    )


def _scored(engine: Engine, row: workflow.ScoredRow) -> ScoredText:
    tokenizer = engine.tokenizer
    return ScoredText(
        token_ids=list(row.token_ids),
        tokens=[tokenizer.token_text(token) for token in row.token_ids],
        text=tokenizer.decode(row.token_ids),
        logprobs=list(row.logprobs),
        sum=sum(one for one in row.logprobs if one is not None),
        greedy=list(row.greedy),
        all_greedy=all(one for one in row.greedy if one is not None),
    )
