"""How models mark what they think before they answer: a table of formats, and a parser that separates it from a growing answer."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Generic, TypeVar

from jinja2 import Environment, TemplateSyntaxError, meta

from steering.pairs import ChatMessage, ContinuedMessage

T = TypeVar("T")
WHITE_SPACE = " \t\r\n"
TAIL = 32
"""Last tokens of a prompt in which its template may begin the thinking of the answer."""
SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates are told whether to think: Qwen 3, GLM 4.5, SmolLM3 and others; DeepSeek 3.1, Granite."""
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags that transformers adds to the language of templates."""


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """How a family of models marks its thinking: `begin`, text, `end`, before the answer. control: markers that
    decoding leaves out. switch: the template's variable for whether to think, if any."""

    name: str
    begin: str
    end: str
    control: Mapping[int, str] = field(default_factory=dict)
    switch: str = ""

    def parser(self, last: ChatMessage, tail: str) -> "ThinkingParser":
        """Returns the parser of an answer. last: the last message before it, which it may continue. tail: how the prompt ends."""
        opened, may_begin = beginning((self.begin, self.end), last, tail)
        return ThinkingParser(self, opened=opened, may_begin=may_begin)


def beginning(markers: tuple[str, str], last: ChatMessage, tail: str) -> tuple[bool, bool]:
    """Returns whether a conversation has begun to think, and whether its answer may; see ThinkingFormat.parser."""
    begin, end = markers
    if isinstance(last, ContinuedMessage):
        return last.content.rfind(begin) > last.content.rfind(end), False
    return tail.rstrip(WHITE_SPACE).endswith(begin), True


FORMATS = (
    ThinkingFormat("think", "<think>", "</think>"),
    ThinkingFormat("mistral", "[THINK]", "[/THINK]"),
    ThinkingFormat("seed", "<seed:think>", "</seed:think>"),
    ThinkingFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Qwen 3, DeepSeek R1, GLM 4.5 and others; Magistral; Seed-OSS; Command A Reasoning. The first that a template contains is its format."""
MARKERS = tuple(marker for one in FORMATS for marker in (one.begin, one.end))


def format_of(template: str, added: Mapping[str, int], special: Collection[str]) -> ThinkingFormat | None:
    """Returns the format of a template, if known. added: tokens beside the vocabulary. special: not decoded ones."""
    if (known := in_template(template)) is None:
        return None
    markers = [one for one in (known.begin, known.end) if one in added and one in special]
    return replace(known, control={added[marker]: marker for marker in markers}, switch=_switch(template))


def _switch(template: str) -> str:
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template))  # noqa: S701 - not rendered
    except TemplateSyntaxError:
        return ""
    names = meta.find_undeclared_variables(parsed)
    return next((one for one in SWITCHES if one in names), "")


def in_template(template: str) -> ThinkingFormat | None:
    """Returns the format whose markers a chat template contains, None where there is none."""
    return next((one for one in FORMATS if one.begin in template or one.end in template), None)


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what an answer thinks."""

    text: str


def joined(parts: Iterable[Any]) -> list[Any]:
    """Joins neighbouring texts, and neighbouring thoughts, and leaves out empty texts."""
    found = list[Any]()
    for kind, group in groupby(parts, type):
        if kind is str:
            found += filter(None, ["".join(group)])
        elif kind is Thought:
            found.append(Thought("".join(one.text for one in group)))
        else:
            found += group
    return found


class StreamParser(ABC, Generic[T]):
    """Separates an answer into its text and other parts as it grows. `_read` takes its characters from `_next`, and adds to `_found` what
    has become certain."""

    def __init__(self) -> None:
        self._found: list[str | T] = []
        self._again: list[str] = []  # characters that are read again, the first one last
        self._ended = False
        self._reading = self._read()
        next(self._reading)

    @abstractmethod
    def _read(self) -> Generator[None, str, None]: ...

    def _next(self) -> Generator[None, str, str]:
        """Returns the next character; an empty string at the end of the answer."""
        if self._again:
            return self._again.pop()
        return "" if self._ended else (yield)

    def feed(self, text: str) -> list[str | T]:
        """Returns the parts that became certain with the next characters."""
        for character in text:
            self._reading.send(character)
        found, self._found = self._found, []
        return joined(found)

    def finish(self) -> list[str | T]:
        """Returns what was held, as the answer has ended."""
        self._ended = True
        with suppress(StopIteration):
            self._reading.send("")
        return self.feed("")


class ThinkingParser(StreamParser[Thought]):
    """Separates what an answer thinks, at its beginning, from what it says as it grows, however it is cut into pieces.
    White space around markers is left out. opened: the prompt has begun the thinking. may_begin: the answer may."""

    def __init__(self, form: ThinkingFormat, *, opened: bool, may_begin: bool) -> None:
        self._form, self._opened, self._may_begin = form, opened, may_begin
        self._blank: list[str] = []  # white space that is left out if the thought ends there
        self._thought = False  # whether there was any thought
        super().__init__()

    def _read(self) -> Generator[None, str, None]:
        begun = self._may_begin and (yield from self._read_begin())
        if begun or self._opened:
            yield from self._read_thought()
        while character := (yield from self._next()):
            self._found.append(character)

    def _read_begin(self) -> Generator[None, str, bool]:
        """Reads the marker that begins the thinking, after white space. What is none is read again."""
        begin, blank, held = self._form.begin, list[str](), ""
        while held != begin and begin.startswith(held) and (character := (yield from self._next())):
            if held or character not in WHITE_SPACE:
                held += character
            else:
                blank.append(character)
        if held != begin:
            self._again += reversed("".join([*blank, held]))
        return held == begin

    def _read_thought(self) -> Generator[None, str, None]:
        """Reads a thought, the marker that ends it, and the white space before the answer."""
        end, held = self._form.end, ""
        while held != end and (character := (yield from self._next())):
            held += character
            cut = next(at for at in range(len(held) + 1) if end.startswith(held[at:]))
            self._think(held[:cut])
            held = held[cut:]
        self._think(held if held != end else "")
        while (character := (yield from self._next())) and character in WHITE_SPACE:
            pass
        self._found.append(character)

    def _think(self, text: str) -> None:
        """Adds a thought, without the white space at its end, which is held, and that at the beginning."""
        stripped = text.rstrip(WHITE_SPACE)
        if not stripped:
            self._blank.append(text)
            return
        thought = "".join([*self._blank, stripped])
        self._found.append(Thought(thought if self._thought else thought.lstrip(WHITE_SPACE)))
        self._thought, self._blank = True, [text[len(stripped) :]]
