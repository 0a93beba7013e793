"""POST /tokenize and /detokenize: a text as the token ids that the model reads, and back."""

from starlette.responses import Response

from app.http.answers import json_in_thread
from app.services.context import Context
from app.services.inputs import prompt_of
from app.services.limits import check_limit
from app.services.reading.responses import SCORE_BYTES
from steering.errors import ContextLengthExceeded, InvalidRequest, LimitExceeded
from steering.schemas.system import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from steering.threads import run_in_thread


async def tokenize(context: Context, body: TokenizeRequest) -> Response:
    """Tokenizes a prompt, which may be longer than the context. Raises LimitExceeded."""
    tokenizer, settings = context.engine.tokenizer, context.settings
    param = "prompt" if body.prompt is not None else "messages"
    try:
        ids = await run_in_thread(tokenizer.encode, prompt_of(body, settings), settings.max_scored_tokens)
    except ContextLengthExceeded as error:
        raise LimitExceeded(error.message, param=param) from None
    context.charge_tokens(len(ids))
    context.admission.reserve(len(ids) * SCORE_BYTES * (2 if body.texts else 1))

    def build() -> TokenizeAnswer:
        texts = [tokenizer.token_text(token) for token in ids] if body.texts else None
        return TokenizeAnswer(tokens=list(ids), count=len(ids), texts=texts)

    return await json_in_thread(build)


async def detokenize(context: Context, body: DetokenizeRequest) -> Response:
    """Decodes token ids. Raises LimitExceeded, InvalidRequest."""
    engine = context.engine
    check_limit(len(body.tokens), context.settings.max_scored_tokens, "tokens", "tokens")
    largest = max(body.tokens, default=0)
    if largest >= engine.info.vocab_size:
        raise InvalidRequest(f"token ids must be below {engine.info.vocab_size}, got {largest}", param="tokens")
    return await json_in_thread(lambda: DetokenizeAnswer(text=engine.tokenizer.decode(body.tokens)))
