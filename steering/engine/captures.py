"""Captures: which positions of a text are read, and what becomes of the pieces."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Literal, TypeAlias

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Tokenizer
from steering.engine.prompts import MAX_TEXT_TOKENS, check_capture
from steering.errors import InvalidRequest, LimitExceeded, NonfiniteActivations
from steering.injection.rows import CaptureState, SteeredRow
from steering.model.hook_points import layer_of
from steering.model.prompt import ModelTokenizer
from steering.pairs import ChatMessage
from steering.schemas.messages import SpanPosition
from steering.shapes import Float, Tensor

WholePosition: TypeAlias = Literal["last", "mean", "response_mean", "all"] | int


def begin(
    index: int, prompt: CapturePrompt, ids: tuple[int, ...], spec: CaptureSpec, tokenizer: ModelTokenizer
) -> CaptureState:
    """The empty state of one text. Raises InvalidRequest where the position or `first` does not exist in it."""
    check_capture(prompt, len(ids))
    position, phrase = spec.position, None
    if isinstance(position, SpanPosition):
        window = _span(position.span, ids, index, tokenizer)
        if position.read == "attending":
            phrase, window = window if spec.layers else None, (window[1], len(ids))
            _check_attending(position.span, window, index)
    else:
        window = _window(position, prompt, len(ids), tokenizer)
    reduce = position != "all"
    if reduce and window[0] >= window[1]:
        raise InvalidRequest(f"position {position!r} has no token of the text to read", param="position")
    return CaptureState(index, spec.layers, window, prompt.first, reduce, spec.logits, spec.embeddings, phrase)


def _check_attending(phrase: str, window: tuple[int, int], index: int) -> None:
    """Raises InvalidRequest where no token follows a phrase, LimitExceeded for a text of more than MAX_TEXT_TOKENS."""
    if window[0] >= window[1]:
        raise InvalidRequest(
            f"text {index} ends with the span {phrase[:80]!r}: no token attends to it", param="position"
        )
    if window[1] > MAX_TEXT_TOKENS:
        raise LimitExceeded(
            f"text {index} has {window[1]} tokens; the token that attends to a span is looked for in at most {MAX_TEXT_TOKENS}",
            param="position",
        )


def _span(phrase: str, ids: tuple[int, ...], index: int, tokenizer: Tokenizer) -> tuple[int, int]:
    """Returns the tokens that a phrase is part of, where it comes last. Raises InvalidRequest for a text without it."""
    pieces = [tokenizer.token_bytes(one) for one in ids]
    begin = b"".join(pieces).rfind(wanted := phrase.encode(errors="replace"))
    if begin < 0:
        raise InvalidRequest(f"text {index} does not contain the span {phrase[:80]!r}", param="position")
    ends = [*accumulate(map(len, pieces))]
    return bisect_right(ends, begin), bisect_left(ends, begin + len(wanted)) + 1


def _window(position: WholePosition, prompt: CapturePrompt, length: int, tokenizer: ModelTokenizer) -> tuple[int, int]:
    if position == "all":
        return prompt.first, length
    if position == "last":
        return length - 1, length
    if position == "mean":
        # the first position is an attention sink with a norm of its own; a mean over it would be a mean of it
        return (1, length) if length > 1 else (0, 1)
    if position == "response_mean":
        if prompt.prompt_length is not None:
            return prompt.prompt_length, length
        messages = prompt.prompt
        if not (isinstance(messages, tuple) and messages and isinstance(messages[0], ChatMessage)):
            raise InvalidRequest("position 'response_mean' needs texts that are lists of messages", param="position")
        return tokenizer.response_span(messages)
    if position >= 0 or -position > length:
        raise InvalidRequest(
            f"position {position} is no offset from the end of a text of {length} tokens (-1 is its last token)",
            param="position",
        )
    return length + position, length + position + 1


def result(row: SteeredRow, embed: Callable[[tuple[int, ...]], Float[Tensor, "token d_model"]]) -> tuple[int, Capture]:
    """(index, Capture) of a text that was read; embed: input embeddings of token ids. Raises NonfiniteActivations."""
    state = row.capture
    assert state is not None
    pieces = [state.pieces[layer] for layer in state.layers]
    layers = [torch.stack(parts).sum(0) if state.reduce else torch.cat(parts) for parts in pieces]
    read = torch.stack([one.to(layers[0].device) for one in layers]).cpu() if layers else torch.empty(0, 1, 0)
    if not bool(torch.isfinite(read).all()):
        raise NonfiniteActivations.found_in("the activations read", steered=not row.plan.empty)
    logits = torch.cat(state.logits).cpu() if state.logits else None
    if logits is not None and not bool(torch.isfinite(logits.amax(dim=1)).all()):  # -infinity is a mask
        raise NonfiniteActivations.found_in("the logits read", steered=not row.plan.empty)
    embeddings = None
    if state.wants_embeddings:
        window = state.window_at(min(state.layers, key=layer_of)) if state.layers else state.window
        embeddings = embed(tuple(row.ids))[slice(*window)]
        embeddings = embeddings.mean(0, keepdim=True) if state.reduce else embeddings
    return state.index, Capture(tuple(row.ids), read, logits, embeddings)
