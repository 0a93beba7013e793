"""SafeEncoder: encodes text so that control tokens come from templates only, never from a caller's text."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from tokenizers import Tokenizer

from steering.errors import InvalidRequest

Span: TypeAlias = tuple[int, int]
"""A half-open range of characters or of tokens."""

PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and the characters of the text that each stands for."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]


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
        longest_first = sorted(filter(None, self.special.values()), key=len, reverse=True)
        self._control = "|".join(map(re.escape, longest_first)) or r"(?!)"

    def literal(self, text: str) -> Encoded:
        """Encodes a caller's text. Raises InvalidRequest if that is impossible without a control token."""
        encoded = self._encode(self._plain, text)
        cuts = [
            span[0] + 1
            for token_id, span in zip(encoded.ids, encoded.spans, strict=True)
            if token_id in self._control_ids
        ]
        if not cuts:
            return encoded
        # Some vocabularies merge plain characters into a control token: the text is cut between those characters.
        pieces = [(start, self._encode(self._plain, text[start:end])) for start, end in pairwise([0, *cuts, len(text)])]
        parts = _joined(pieces)
        if not self._control_ids.isdisjoint(parts.ids):
            raise InvalidRequest("the text contains a control token that this tokenizer cannot encode as plain text")
        return parts

    def marks(self, texts: Sequence[str]) -> Marks | None:
        """Returns marks for these texts, or None when none contains the string of a special token."""
        if not any(re.search(self._control, text) for text in texts):
            return None
        opening, closing = unused_characters(texts, 2)
        return Marks(opening, closing)

    def marked(self, text: str, marks: Marks) -> str:
        """Returns the text with marks around each string of a special token."""
        return re.sub(self._control, lambda match: f"{marks.opening}{match[0]}{marks.closing}", text)

    def rendered(self, text: str, marks: Marks | None) -> Encoded:
        """Encodes a rendered template, marked parts as plain text. Spans count the text without marks."""
        if marks is None:
            return self._encode(self._backend, text)
        pieces: list[tuple[int, Encoded]] = []
        base = 0
        marked = f"{re.escape(marks.opening)}({self._control}){re.escape(marks.closing)}"
        for number, part in enumerate(re.split(marked, text)):
            piece = marks.removed_from(part)  # a template that cuts a message in two may leave one mark of a pair
            pieces.append((base, self.literal(piece) if number % 2 else self._encode(self._backend, piece)))
            base += len(piece)
        return _joined(pieces)

    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the ids that the tokenizer adds before and after a text."""
        encoding = self._backend.encode("a")
        own = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
        return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])

    @staticmethod
    def _encode(backend: Tokenizer, text: str) -> Encoded:
        encoding = backend.encode(text, add_special_tokens=False)
        return Encoded(tuple(encoding.ids), tuple(encoding.offsets))


def unused_characters(texts: Sequence[str], count: int) -> list[str]:
    """Returns characters of the private use area that none of the texts contains."""
    used = set().union(*texts)
    unused = [chr(point) for point in PRIVATE_USE if chr(point) not in used][:count]
    if len(unused) < count:
        raise InvalidRequest("the messages use every character of the private use area of Unicode", param="messages")
    return unused


def _joined(pieces: Sequence[tuple[int, Encoded]]) -> Encoded:
    ids = [token_id for _, piece in pieces for token_id in piece.ids]
    spans = [(base + start, base + end) for base, piece in pieces for start, end in piece.spans]
    return Encoded(tuple(ids), tuple(spans))


def _unknown_token(backend: Tokenizer) -> str | None:
    """Returns the token for text outside the vocabulary: marked special, but not a control token."""
    name = getattr(backend.model, "unk_token", None)
    if name is not None or not hasattr(backend.model, "unk_id"):
        return name
    unk_id = json.loads(backend.to_str())["model"].get("unk_id")
    return None if unk_id is None else backend.id_to_token(unk_id)
