"""Text completions in OpenAI's form: texts that are continued, and prompts that are scored (`echo` with `logprobs`)."""

import codecs
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.api.context import AdmittedDep
from app.api.openai import STREAM, OpenAIWork
from app.api.openai_schemas import CompletionRequest, inputs_of
from app.core.answers import ALTERNATIVE_BYTES
from app.core.requests import ApiRoute, needs
from steering.engine.api import Finish, TokenEvent
from steering.injection.rows import SteeringReport
from steering.workflows.generate import Answer
from steering.workflows.logprobs import ScoredPrompt, ScoredToken, logit_bytes, prompt_logprobs

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of /v1/completions."""

router = APIRouter(route_class=ApiRoute, tags=["openai"])


@router.post("/v1/completions", openapi_extra=needs("generate"), response_class=Response, responses=STREAM)
async def text_completions(body: CompletionRequest, context: AdmittedDep) -> Response:
    """Continues texts, as OpenAI's completions do; `echo` with `logprobs` scores the prompt."""
    work = CompletionWork(context, body, body.logprobs)
    await work.prepare(inputs_of(body.prompt), DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
    if body.echo and body.logprobs is not None:  # the prompts are scored
        prompts = work.prompts
        listed = sum(map(len, prompts)) * (body.n or 1) * (1 + body.logprobs) * ALTERNATIVE_BYTES
        context.admission.reserve(logit_bytes(prompts, context.engine.info.vocab_size) + listed)
    return await work.respond()


@dataclass(eq=False)
class Offsets:
    """Counts the characters before each token of a text. A token within a character begins where that does; a control token has no characters.
    bare: the text begins without the space that some tokenizers add to its first word."""

    bare: bool = False
    characters: int = field(default=0, init=False)
    decoder: codecs.IncrementalDecoder = field(
        default_factory=partial(codecs.getincrementaldecoder("utf-8"), "replace"), init=False
    )

    def before(self, token: bytes) -> int:
        """Returns where a token begins, and counts it. Behind bytes that it does not complete it begins after their replacement."""
        text = self.decoder.decode(token[:1])
        own = not self.decoder.getstate()[
            0
        ]  # whether the last character has the first byte; else that waits for others
        start = self.characters + max(len(text) - own, 0)
        text += self.decoder.decode(token[1:])
        self.characters += len(text.removeprefix(" ") if self.bare and self.characters == 0 else text)
        return start


@dataclass(eq=False)
class CompletionWork(OpenAIWork):
    """A text completion.
    scored: the prompts with their log-probabilities, where they are echoed.
    offsets: where the next token of each choice begins that is streamed."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    body: CompletionRequest
    scored: Sequence[ScoredPrompt] = field(default=(), init=False)
    offsets: defaultdict[int, Offsets] = field(default_factory=lambda: defaultdict(Offsets), init=False)

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The token ids of the prompts."""
        return [tuple(token for token in one.request.prompt if isinstance(token, int)) for one in self.generations]

    @property
    def cost(self) -> int:
        """See GenerationWork.cost. Prompts that are scored are read a second time, unless nothing is generated."""
        twice = self.body.echo and self.logprobs is not None and self.body.max_tokens != 0
        return super().cost + (sum(map(len, self.prompts)) if twice else 0)

    async def run(self) -> list[Answer]:
        """Runs the request. With `max_tokens: 0` only the prompts are scored."""
        prompts, plan = self.prompts, self.generations[0].request.plan
        if self.body.echo and self.logprobs is not None:
            self.scored = await prompt_logprobs(self.context.engine, prompts, plan, self.logprobs)
        if self.body.max_tokens == 0:
            reports = [one.steering for one in self.scored] or [SteeringReport() for _ in prompts]
            ends = (Finish("length", len(ids), 0, 0, report) for ids, report in zip(prompts, reports, strict=True))
            return [Answer("", (), end, ()) for end in ends]
        return await super().run()

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIWork.choice."""
        prompt, text, logprobs = index // self.generations[0].n, answer.text, None
        if self.body.echo:
            given = inputs_of(self.body.prompt)[prompt]
            text = (given if isinstance(given, str) else self.context.engine.tokenizer.decode(given)) + text
        if self.logprobs is not None:
            scored = self.scored[prompt].tokens if self.scored else ()
            offsets = Offsets(bare=bool(scored) and not text.startswith(" "))
            logprobs = self._logprobs([*scored, *map(_scored, answer.events)], offsets)
        return {"index": index, "text": text, "logprobs": logprobs}

    def deltas(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        """Describes text chunks and finish chunks."""
        logprobs = None
        if self.logprobs is not None and event.token_id >= 0:
            logprobs = self._logprobs([_scored(event)], self.offsets[index])
        if not event.text and event.finish is None and logprobs is None:
            return []
        return [{"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None}]

    def _text(self, token: int) -> str:
        """Returns the text of a token, as in OpenAI's API `bytes:\\xf0\\x9f` where it is part of a character: alternatives are told apart."""
        text, raw = super()._text(token), self._bytes(token)
        return text if raw in (b"", text.encode()) else f"bytes:{str(raw)[2:-1]}"

    def _logprobs(self, tokens: Sequence[ScoredToken], begun: Offsets) -> dict[str, Any]:
        """Returns the four parallel lists of the legacy format. begun: the text before the tokens."""
        texts = [self._text(token.token_id) for token in tokens]
        offsets = [begun.before(self._bytes(token.token_id)) for token in tokens]
        top = [self._top(token, text) for token, text in zip(tokens, texts, strict=True)] if self.logprobs else None
        logprobs = [token.logprob for token in tokens]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}

    def _top(self, token: ScoredToken, text: str) -> dict[str, float] | None:
        """Returns the alternatives by text. The chosen token is among them, as in OpenAI's API."""
        if token.logprob is None:
            return None
        found = {self._text(other): logprob for other, logprob in reversed(token.top)}
        if all(other != token.token_id for other, _ in token.top):
            found.setdefault(text, token.logprob)
        return found


def _scored(event: TokenEvent) -> ScoredToken:
    return ScoredToken(event.token_id, event.logprob, event.top_logprobs)
