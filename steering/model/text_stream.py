"""TextStream: token ids one at a time to text in whole characters."""

from collections.abc import Sequence

from tokenizers import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for the first bytes of a character whose other bytes have not come yet."""

HELD = 64
"""Tokens kept back at most. A character needs four; more is a run of bytes that is no text."""


class TextDecoder:
    """A tokenizer's text of token ids, without control tokens. Of single tokens it remembers how long their text is: that is
    asked for every token of every stream."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._lengths: dict[int, int] = {}

    def text(self, token_ids: Sequence[int]) -> str:
        """As the tokenizer writes them side by side."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def length(self, token_ids: Sequence[int]) -> int:
        """Characters of their text."""
        if len(token_ids) != 1:
            return len(self.text(token_ids))
        known = self._lengths.get(token_ids[0])
        if known is None:
            known = self._lengths[token_ids[0]] = len(self.text(token_ids))
        return known


class TextStream:
    """The text of one answer as it grows. The joined pieces, flush included, are the text of all its tokens.

    (Where a model writes bytes that are no text, a decoder with byte fallback may take back what it wrote before in
    the same run; a stream cannot. The decode stream of `tokenizers` raises an error there, so it is not used.)

    context: the ids before the first one, so that a tokenizer that marks word beginnings keeps the first space.
    """

    def __init__(self, decoder: TextDecoder, context: Sequence[int] = ()) -> None:
        self._decoder = decoder
        # A context that ends within a character would be given out a second time with its last byte: use none then.
        self._ids = [] if decoder.text(list(context)).endswith(BROKEN) else list(context)
        self._all_given()

    def step(self, token_id: int) -> str:
        """The characters that became certain with this token; empty while a character is incomplete."""
        self._ids.append(token_id)
        piece = self._pending()
        if not piece or (piece.endswith(BROKEN) and len(self._ids) - self._given < HELD):
            return ""
        self._ids = self._ids[self._given :]
        self._all_given()
        return piece

    def flush(self) -> str:
        """What is left at the end: the incomplete character, as the decoder writes it. Empty for whole text."""
        piece = self._pending()
        self._all_given()
        return piece

    def _all_given(self) -> None:
        """All ids are given out; they stay as the surroundings in which the next are decoded."""
        self._given, self._characters = len(self._ids), self._decoder.length(self._ids)

    def _pending(self) -> str:
        return self._decoder.text(self._ids)[self._characters :]
