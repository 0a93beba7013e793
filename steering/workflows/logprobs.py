"""Log-probabilities of the tokens of texts under a plan, and of what each layer would predict (logit lens)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Position, Prompt, Tokenizer
from steering.engine.capabilities import unembedding_of
from steering.engine.prompts import check_context, encode_with_plans
from steering.errors import InvalidRequest
from steering.injection.rows import SteeringReport
from steering.layer_indices import layer_indices
from steering.pairs import ChatMessage
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.generation import TopLogprob
from steering.schemas.reading import LensLayerAnswer, ScoredText
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread
from steering.workflows.measures import shared_prefix
from steering.workflows.readout import grouped

T = TypeVar("T")
LOGITS_BOUND = 32 * 1024 * 1024
"""Logits held at a time, in numbers (128 MB); more texts or positions than fit are read in turn."""
SEPARATOR = "\n"
"""A text that tokenizers keep apart from what follows it; continuations are tokenized after it."""
ROWS = 64
"""Positions whose log-probabilities are computed at a time."""


def continuation_ids(
    tokenizer: Tokenizer, prompt: Prompt, text: str, before: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Returns the tokens of a text after a prompt. Where the tokenizer would merge across the boundary, and after a
    conversation, it is tokenized as after a line break. before: the tokens of the prompt, where known."""
    if isinstance(prompt, str):
        before = tokenizer.encode(prompt) if before is None else before
        whole = tokenizer.encode(prompt + text)
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
    separator, whole = tokenizer.encode(SEPARATOR), tokenizer.encode(SEPARATOR + text)
    return whole[shared_prefix(separator, whole) :]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt with its tokens, and a plan with the roles of these tokens where it asks for them."""

    prompt: Prompt
    ids: tuple[int, ...]
    plan: SteeringPlan


def encode_continued(
    engine: Engine, prompt: Prompt, plans: Sequence[SteeringPlan] = (UNSTEERED,)
) -> tuple[EncodedPrompt, ...]:
    """Tokenizes a prompt that a token will follow, for each plan. Raises InvalidRequest, ContextLengthExceeded."""
    try:
        ids, plans = encode_with_plans(engine.tokenizer, prompt, plans)
        check_context(len(ids) + 1, 0, engine.info)
    except InvalidRequest as error:
        conversation = not isinstance(prompt, str) and isinstance(next(iter(prompt), None), ChatMessage)
        param = "messages" if conversation and error.param == "prompt" else error.param
        raise type(error)(error.message, param=param) from None
    return tuple(EncodedPrompt(prompt, ids, plan) for plan in plans)


def continuation_rows(
    engine: Engine, before: EncodedPrompt, texts: Sequence[str], param: str = "continuations"
) -> Iterator[CapturePrompt]:
    """Yields a row for `score` for each continuation of a prompt. Raises InvalidRequest for a text without tokens and for what
    cannot be encoded, ContextLengthExceeded. param: the field of the texts."""
    for index, text in enumerate(texts):
        field = f"{param}.{index}"
        try:
            ids = continuation_ids(engine.tokenizer, before.prompt, text, before.ids)
        except InvalidRequest as error:
            raise type(error)(error.message, param=field) from None
        if not ids:
            raise InvalidRequest("the continuation has no token", param=field)
        check_context(len(before.ids) + len(ids), 0, engine.info, param=field)
        yield CapturePrompt((*before.ids, *ids), before.plan, len(before.ids), len(before.ids) - 1)


async def score(engine: Engine, rows: Sequence[CapturePrompt], priority: int = 0) -> list[ScoredText]:
    """Scores every row (token ids, the prompt's first) under its plan, in order, without the prompt. Rows without a
    prompt_length count as prompt and are scored from their second token on. Raises what `Engine.capture` raises."""
    return await _read_each(engine, rows, lambda row, read: _scored(engine, read, row.prompt_length or 0), priority)


async def next_logprobs(
    engine: Engine, prompts: Sequence[EncodedPrompt], tokens: Sequence[int], *, cache_salt: str, priority: int = 0
) -> list[list[float]]:
    """Returns, for each prompt under its plan, the log-probabilities of the tokens that may come next. cache_salt: prompts are
    computed once for calls of one salt, up to where their plans act. Raises what `Engine.capture` raises."""
    rows = [CapturePrompt(one.ids, one.plan, len(one.ids), len(one.ids) - 1) for one in prompts]
    asked = torch.tensor(tokens)
    return await _read_each(engine, rows, lambda _, read: _next(read, asked), priority, cache_salt)


def _next(capture: Capture, tokens: Tensor) -> list[float]:
    assert capture.logits is not None, "asked for with CaptureSpec.logits"
    found: list[float] = torch.log_softmax(capture.logits[-1].float(), dim=-1)[tokens].tolist()
    return found


async def _read_each(
    engine: Engine,
    rows: Sequence[CapturePrompt],
    work: Callable[[CapturePrompt, Capture], T],
    priority: int = 0,
    cache_salt: str | None = None,
) -> list[T]:
    """Reads the logits of rows from their `first` position on, in `parts`, and returns what `work` makes of each in a thread."""
    found: list[T] = []
    for part in parts(rows, engine.info.vocab_size):
        spec = CaptureSpec((), logits=True, cache_salt=cache_salt)
        captures = await engine.capture(part, spec, priority=priority)
        found += await run_in_thread(lambda rows, read: list(map(work, rows, read)), part, captures)
    return found


def parts(rows: Sequence[CapturePrompt], vocabulary: int) -> list[list[CapturePrompt]]:
    """Groups rows whose logits, from their `first` position on, fit into LOGITS_BOUND; a longer row is alone."""
    return grouped(rows, lambda row: (len(row.prompt) - row.first) * vocabulary, LOGITS_BOUND)


def _scored(engine: Engine, capture: Capture, prompt_length: int) -> ScoredText:
    assert capture.logits is not None, "asked for with CaptureSpec.logits"
    start = max(prompt_length, 1)
    ids = torch.tensor(capture.token_ids)
    logits = capture.logits[:-1].float()
    own = torch.log_softmax(logits, dim=-1).gather(1, ids[start:, None])[:, 0].tolist()
    greedy = (logits.argmax(dim=-1) == ids[start:]).tolist()
    unknown = [None] * (start - prompt_length)
    scored = capture.token_ids[prompt_length:]
    return ScoredText(
        token_ids=list(scored),
        tokens=[engine.tokenizer.token_text(token) for token in scored],
        text=engine.tokenizer.decode(scored),
        logprobs=[*unknown, *own],
        sum=sum(own),
        greedy=[*unknown, *greedy],
        all_greedy=all(greedy) if greedy else None,
    )


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a text. logprob: given the tokens before it, None for the first. top: most probable first."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The tokens of a text, and what steering did to it."""

    tokens: tuple[ScoredToken, ...]
    steering: SteeringReport


async def prompt_logprobs(
    engine: Engine, token_ids: Sequence[tuple[int, ...]], plan: SteeringPlan, top: int
) -> tuple[ScoredPrompt, ...]:
    """Scores every token of each text under a plan, with the `top` likeliest at its position; see LOGITS_BOUND."""
    rows = [CapturePrompt(ids, plan) for ids in token_ids]
    return tuple(await _read_each(engine, rows, lambda _, read: _with_top(read, top)))


def held_logits(positions: Sequence[int], vocabulary: int) -> int:
    """Returns how many logits are held at a time when rows are read. positions: of each row, from its `first` on."""
    return min(max(LOGITS_BOUND, max(positions) * vocabulary), sum(positions) * vocabulary)


def logit_bytes(token_ids: Sequence[tuple[int, ...]], vocabulary: int) -> int:
    """Returns the memory of the logits that `prompt_logprobs` holds: in pieces, and then as one tensor."""
    return 2 * 4 * held_logits(list(map(len, token_ids)), vocabulary)


def _with_top(capture: Capture, top: int) -> ScoredPrompt:
    ids, logits = capture.token_ids, capture.logits
    assert logits is not None, "asked for with CaptureSpec.logits"
    scored = [ScoredToken(ids[0], None)]
    for start in range(0, len(ids) - 1, ROWS):
        following = ids[start + 1 : start + 1 + ROWS]
        logprobs = torch.log_softmax(logits[start : start + len(following)].float(), dim=-1)
        own = logprobs.gather(1, torch.tensor(following)[:, None])[:, 0].tolist()
        best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
        rows = zip(following, own, best.indices.tolist(), best.values.tolist(), strict=True)
        scored += [ScoredToken(token, value, tuple(zip(i, v, strict=True))) for token, value, i, v in rows]
    return ScoredPrompt(tuple(scored), capture.steering)


async def embed(
    engine: Engine, token_ids: Sequence[tuple[int, ...]], layer: int, position: Position
) -> tuple[tuple[float, ...], ...]:
    """Returns one activation of d_model numbers for each text, at one layer."""
    prompts = [CapturePrompt(ids, UNSTEERED) for ids in token_ids]
    captures = await engine.capture(prompts, CaptureSpec((layer,), position=position), priority=0)
    return await run_in_thread(lambda: tuple(tuple(capture.activations[0, 0].tolist()) for capture in captures))


Row: TypeAlias = list[TopLogprob]
"""The most likely tokens at one position, best first."""


async def logit_lens(
    engine: Engine,
    prompt: Prompt,
    plan: SteeringPlan = UNSTEERED,
    layers: Literal["all"] | tuple[int, ...] = "all",
    top_k: int = 5,
) -> list[LensLayerAnswer]:
    """Returns log softmax(unembed(final_norm(r))) of the `top_k` likeliest tokens, r the residual after each layer,
    plain and steered (nostalgebraist, 2020). All is read as prompt. Raises InvalidRequest for layers or a top_k that
    cannot be."""
    indices = layer_indices(layers, engine.info.layer_count)
    if not 1 <= top_k <= engine.info.vocab_size:
        raise InvalidRequest(f"top_k must be 1 to {engine.info.vocab_size}, got {top_k}", param="top_k")
    plans = (plan.unsteered,) if plan.empty else (plan.unsteered, plan)
    captures = await engine.capture(
        [CapturePrompt(prompt, one) for one in plans], CaptureSpec(layers=indices, position="all"), priority=0
    )
    found = [[await _predictions(engine, residual, top_k) for residual in one.activations] for one in captures]
    steered: Sequence[list[Row] | None] = [None] * len(indices) if plan.empty else found[1]
    rows = zip(indices, found[0], steered, strict=True)
    return await run_in_thread(lambda: [LensLayerAnswer(layer=at, plain=one, steered=two) for at, one, two in rows])


async def _predictions(engine: Engine, residual: Float[Tensor, "token d_model"], top_k: int) -> list[Row]:
    """Reads one layer, as many positions at a time as their logits may be held."""
    rows: list[Row] = []
    for part in torch.split(residual, max(1, LOGITS_BOUND // engine.info.vocab_size)):
        rows += await run_in_thread(_most_likely, engine, await unembedding_of(engine).unembed(part), top_k)
    return rows


def _most_likely(engine: Engine, logits: Float[Tensor, "token vocab"], top_k: int) -> list[Row]:
    values, ids = logits.topk(top_k, dim=1)
    logprobs = values - logits.logsumexp(dim=1, keepdim=True)
    text = engine.tokenizer.token_text
    return [
        [TopLogprob(id=token, text=text(token), logprob=score) for token, score in zip(row, scores, strict=True)]
        for row, scores in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
