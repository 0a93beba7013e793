"""SafeEncoder: text to ids such that control tokens come from templates only, never from a caller's text."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from tokenizers import Tokenizer

from steering.errors import InvalidRequest

Span: TypeAlias = tuple[int, int]
"""Half-open: of characters, or of tokens."""

PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each the characters of the text it stands for."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Marks:
    """Two characters that no message holds, set around what must stay plain text while a template is rendered."""

    opening: str
    closing: str

    def removed_from(self, text: str) -> str:
        return text.replace(self.opening, "").replace(self.closing, "")


class SafeEncoder:
    """Two ways through one tokenizer: as written, and with the strings of special tokens read as plain text.

    Nothing is changed after construction, so threads may share it.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True  # to this one, "<|im_end|>" is ten characters
        unknown = _unknown_token(backend)
        self.special = {
            token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        }
        self._control_ids = frozenset(i for i, content in self.special.items() if content != unknown)
        longest_first = sorted(filter(None, self.special.values()), key=len, reverse=True)
        self._control = "|".join(map(re.escape, longest_first)) or r"(?!)"

    def literal(self, text: str) -> Encoded:
        """A caller's text. Raises InvalidRequest if the tokenizer can write it with a control token only."""
        encoded = self._encode(self._plain, text)
        cuts = [span[0] + 1 for token_id, span in _tokens(encoded) if token_id in self._control_ids]
        if not cuts:
            return encoded
        # Some vocabularies reach a control token by merging plain characters: cut between them, so that they cannot.
        pieces = [(start, self._encode(self._plain, text[start:end])) for start, end in pairwise([0, *cuts, len(text)])]
        parts = _joined(pieces)
        if not self._control_ids.isdisjoint(parts.ids):
            raise InvalidRequest("the text holds a control token that this tokenizer cannot write as plain text")
        return parts

    def marks(self, texts: Sequence[str]) -> Marks | None:
        """Marks for these texts, or None when no text holds the string of a special token."""
        if not any(re.search(self._control, text) for text in texts):
            return None
        opening, closing = unused_characters(texts, 2)
        return Marks(opening, closing)

    def marked(self, text: str, marks: Marks) -> str:
        """The text with marks around each string of a special token."""
        return re.sub(self._control, lambda match: f"{marks.opening}{match[0]}{marks.closing}", text)

    def rendered(self, text: str, marks: Marks | None) -> Encoded:
        """A rendered template: what is marked is plain text, all else as written. Spans count the text without marks."""
        if marks is None:
            return self._encode(self._backend, text)
        pieces: list[tuple[int, Encoded]] = []
        base = 0
        marked = f"{re.escape(marks.opening)}({self._control}){re.escape(marks.closing)}"
        for number, part in enumerate(re.split(marked, text)):
            piece = marks.removed_from(part)  # a template that cuts a message in two may leave half a pair
            pieces.append((base, self.literal(piece) if number % 2 else self._encode(self._backend, piece)))
            base += len(piece)
        return _joined(pieces)

    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids the tokenizer puts before and after a text of its own accord."""
        encoding = self._backend.encode("a")
        own = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
        return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])

    @staticmethod
    def _encode(backend: Tokenizer, text: str) -> Encoded:
        encoding = backend.encode(text, add_special_tokens=False)
        return Encoded(tuple(encoding.ids), tuple(encoding.offsets))


def unused_characters(texts: Sequence[str], count: int) -> list[str]:
    """Characters of the private use area that none of the texts holds."""
    used = set().union(*texts)
    unused = [chr(point) for point in PRIVATE_USE if chr(point) not in used][:count]
    if len(unused) < count:
        raise InvalidRequest("the messages use every character of the private use area of Unicode", param="messages")
    return unused


def _tokens(encoded: Encoded) -> Iterator[tuple[int, Span]]:
    return zip(encoded.ids, encoded.spans, strict=True)


def _joined(pieces: Sequence[tuple[int, Encoded]]) -> Encoded:
    ids = [token_id for _, piece in pieces for token_id in piece.ids]
    spans = [(base + start, base + end) for base, piece in pieces for start, end in piece.spans]
    return Encoded(tuple(ids), tuple(spans))


def _unknown_token(backend: Tokenizer) -> str | None:
    """What the tokenizer writes for text it cannot write: special in name, yet no control token."""
    name = getattr(backend.model, "unk_token", None)
    if name is not None or not hasattr(backend.model, "unk_id"):
        return name
    unk_id = json.loads(backend.to_str())["model"].get("unk_id")
    return None if unk_id is None else backend.id_to_token(unk_id)
