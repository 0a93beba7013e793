"""TextStream: converts token ids to text one at a time, in whole characters."""

from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder returns for the first bytes of a character whose other bytes are still missing."""

MAX_HELD = 64
"""Tokens kept back at most. A character needs four; more is a run of bytes that is not text, or of control tokens."""


class TextDecoder:
    """Decodes token ids without control tokens. Caches the length of a single token's text, which every token needs."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._length_of_one = cache(lambda token_id: len(self.text([token_id])))

    def text(self, token_ids: Sequence[int]) -> str:
        """Returns the text of these ids together."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def length(self, token_ids: Sequence[int]) -> int:
        """Returns the number of characters of their text."""
        return self._length_of_one(token_ids[0]) if len(token_ids) == 1 else len(self.text(token_ids))


class TextStream:
    """The text of one answer as it grows. The joined pieces, with that of flush, are the text of all its tokens.
    context: the ids before the first one, so that tokenizers that mark the start of words keep the first space."""

    # The decode stream of `tokenizers` raises an error where a model generates bytes that are not text.

    def __init__(self, decoder: TextDecoder, context: Sequence[int] = ()) -> None:
        self._decoder = decoder
        # With a context that ends within a character, that character would be returned again with its last byte.
        self._ids = [] if decoder.text(list(context)).endswith(BROKEN) else list(context)
        self._mark_returned()

    def step(self, token_id: int) -> str:
        """Returns the characters that this token completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        piece = self._pending()
        held = len(self._ids) - self._returned
        if not piece:
            if held >= MAX_HELD:  # control tokens only: decoding them again each time is quadratic
                del self._ids[self._returned :]
            return ""
        if piece.endswith(BROKEN) and held < MAX_HELD:
            return ""
        self._ids = self._ids[self._returned :]
        self._mark_returned()
        return piece

    def flush(self) -> str:
        """Returns the incomplete character at the end, as the decoder writes it. Empty for whole text."""
        piece = self._pending()
        self._mark_returned()
        return piece

    def _mark_returned(self) -> None:
        """Notes that all ids are returned; they stay as the context in which the next ones are decoded."""
        self._returned, self._characters = len(self._ids), self._decoder.length(self._ids)

    def _pending(self) -> str:
        return self._decoder.text(self._ids)[self._characters :]
