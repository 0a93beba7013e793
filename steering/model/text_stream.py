"""TextStream: token ids one at a time to text in whole characters."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for the first bytes of a character whose other bytes have not come yet."""


class TextStream:
    """The text of one answer as it grows. The joined pieces, flush included, are the text of all its tokens.

    context: the ids before the first one, so that a tokenizer that marks word beginnings keeps the first space.
    """

    def __init__(self, backend: Tokenizer, context: Sequence[int] = ()) -> None:
        self._backend = backend
        self._context = self._whole_context(context)
        self._ids = list(self._context)
        self._stream = DecodeStream(ids=list(self._context), skip_special_tokens=True)
        self._given = 0

    def step(self, token_id: int) -> str:
        """The characters that became certain with this token; empty while a character is incomplete."""
        self._ids.append(token_id)
        piece = self._stream.step(self._backend, token_id) or ""
        self._given += len(piece)
        return piece

    def flush(self) -> str:
        """What is left at the end: the incomplete character, as the decoder writes it. Empty for whole text."""
        text = self._text(self._ids)[len(self._text(self._context)) :]
        rest = text[self._given :]
        self._given += len(rest)
        return rest

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._backend.decode(list(token_ids), skip_special_tokens=True)

    def _whole_context(self, context: Sequence[int]) -> tuple[int, ...]:
        """A context that ends within a character would be given out a second time with its last byte: use none then."""
        return () if self._text(context).endswith(BROKEN) else tuple(context)
