"""SafeEncoder: encodes text so that control tokens come from templates only, never from a caller's text."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeAlias

from tokenizers import Encoding, Tokenizer

from steering.errors import ContextLengthExceeded, InvalidRequest

Span: TypeAlias = tuple[int, int]
"""A half-open range of characters or of tokens."""

PRIVATE_USE = range(0xE000, 0xF900)
_IDS: dict[int, int] = {}
"""Every token id that was seen; there are as many as tokens in the vocabularies."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text in tokens. pieces: its parts in order, each with the number of characters before it.

    `len` is the number of tokens. Ids and spans become Python objects only when they are asked for, since that holds the
    interpreter (0.2 us and 1 us for each token) and a text may be refused for its length.
    """

    pieces: tuple[tuple[int, Encoding], ...]

    def __len__(self) -> int:
        return sum(len(piece) for _, piece in self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids. Equal ones are one object, so that a token of a long text takes 8 bytes and not 40."""
        return tuple(chain.from_iterable(map(_IDS.setdefault, piece.ids, piece.ids) for _, piece in self.pieces))

    @property
    def spans(self) -> tuple[Span, ...]:
        """The characters of the text that each token stands for."""
        return tuple((base + start, base + end) for base, piece in self.pieces for start, end in piece.offsets)


@dataclass(frozen=True, slots=True)
class Marks:
    """Two characters that no message contains, set around what must stay plain text while a template is rendered."""

    opening: str
    closing: str

    def removed_from(self, text: str) -> str:
        """Returns the text without the marks."""
        return text.replace(self.opening, "").replace(self.closing, "")


class SafeEncoder:
    """Encodes with one tokenizer in two ways: as it is, and with the strings of special tokens read as plain text.

    Immutable after construction, so threads may share it.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True  # reads "<|im_end|>" as ten characters
        unknown = _unknown_token(backend)
        self.special = {
            token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        }
        self._control_ids = frozenset(i for i, content in self.special.items() if content != unknown)
        self._contents = sorted(filter(None, self.special.values()), key=len, reverse=True)
        self._control = "|".join(map(re.escape, self._contents)) or r"(?!)"

    def literal(self, text: str, most: int | None = None) -> Encoded:
        """Encodes a caller's text. Raises InvalidRequest if that is impossible without a control token, ContextLengthExceeded for
        more than `most` tokens."""
        encoded = self._encode(self._plain, text, most)
        if self._control_ids.isdisjoint(encoded.ids):
            return encoded
        cuts = [
            span[0] + 1
            for token_id, span in zip(encoded.ids, encoded.spans, strict=True)
            if token_id in self._control_ids
        ]
        # Some vocabularies merge plain characters into a control token: the text is cut between those characters.
        pieces = [(start, self._encode(self._plain, text[start:end])) for start, end in pairwise([0, *cuts, len(text)])]
        parts = _joined(pieces)
        if not self._control_ids.isdisjoint(parts.ids):
            raise InvalidRequest("the text contains a control token that this tokenizer cannot encode as plain text")
        return parts

    def marks(self, texts: Sequence[str]) -> Marks | None:
        """Returns marks for these texts, or None when none contains the string of a special token."""
        if not any(content in text for text in texts for content in self._contents):
            return None
        opening, closing = unused_characters(texts, 2)
        return Marks(opening, closing)

    def marked(self, text: str, marks: Marks) -> str:
        """Returns the text with marks around each string of a special token."""
        return re.sub(self._control, lambda match: f"{marks.opening}{match[0]}{marks.closing}", text)

    def rendered(self, text: str, marks: Marks | None, most: int | None = None) -> Encoded:
        """Encodes a rendered template, marked parts as plain text. Spans count the text without marks. Raises what `literal` raises."""
        if marks is None:
            return self._encode(self._backend, text, most)
        pieces: list[tuple[int, Encoded]] = []
        base = 0
        marked = f"{re.escape(marks.opening)}({self._control}){re.escape(marks.closing)}"
        for number, part in enumerate(re.split(marked, text)):
            piece = marks.removed_from(part)  # a template that cuts a message in two may leave one mark of a pair
            encoded = self.literal(piece, most) if number % 2 else self._encode(self._backend, piece, most)
            pieces.append((base, encoded))
            base += len(piece)
        return _checked(_joined(pieces), most)

    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the ids that the tokenizer adds before and after a text."""
        encoding = self._backend.encode("a")
        own = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
        return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])

    @staticmethod
    def _encode(backend: Tokenizer, text: str, most: int | None = None) -> Encoded:
        """Encodes a text while other threads run: `Tokenizer.encode` would hold the interpreter's lock, for seconds if it is long."""
        (encoding,) = backend.encode_batch([text], add_special_tokens=False)
        return _checked(Encoded(((0, encoding),)), most)


def unused_characters(texts: Sequence[str], count: int) -> list[str]:
    """Returns characters of the private use area that none of the texts contains."""
    used = set().union(*texts)
    unused = [chr(point) for point in PRIVATE_USE if chr(point) not in used][:count]
    if len(unused) < count:
        raise InvalidRequest("the messages use every character of the private use area of Unicode", param="messages")
    return unused


def _joined(pieces: Sequence[tuple[int, Encoded]]) -> Encoded:
    return Encoded(tuple((base + inner, piece) for base, part in pieces for inner, piece in part.pieces))


def _checked(encoded: Encoded, most: int | None) -> Encoded:
    if most is not None and len(encoded) > most:
        raise ContextLengthExceeded(f"the prompt has {len(encoded)} tokens; at most {most} fit", param="prompt")
    return encoded


def _unknown_token(backend: Tokenizer) -> str | None:
    """Returns the token for text outside the vocabulary: marked special, but not a control token."""
    name = getattr(backend.model, "unk_token", None)
    if name is not None or not hasattr(backend.model, "unk_id"):
        return name
    unk_id = json.loads(backend.to_str())["model"].get("unk_id")
    return None if unk_id is None else backend.id_to_token(unk_id)
