"""The parts of an answer: what it thinks, what it says, and calls of tools, separated as it grows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from app.api.conversation import ToolUse
from steering.engine.api import TokenEvent
from steering.model.thinking import ThinkingParser, Thought, joined
from steering.model.tool_calls import FoundCall
from steering.workflows.generate import Answer


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool. index: among those of its answer. arguments: a JSON object, as text."""

    index: int
    id: str
    name: str
    arguments: str


Part: TypeAlias = str | Thought | Call
"""Text of the answer, a piece of what it thinks, or a whole call."""


class PartReader:
    """Reads one answer. calls: how many there were so far."""

    def __init__(self, tools: ToolUse | None, thinking: ThinkingParser | None, control: dict[int, str]) -> None:
        self.calls = 0
        self._tools, self._thinking, self._control = tools, thinking, control
        self._parser = tools.parser() if tools is not None and tools.names else None

    @property
    def warnings(self) -> list[str]:
        """What is wrong with calls."""
        return [] if self._parser is None else self._parser.warnings

    def read(self, token: int, text: str, *, last: bool = False) -> list[Part]:
        """Returns the parts that became certain with a token, the rest of them with the last. The text is what was held back before
        the token, where the token is a marker without a text."""
        text += self._control.get(token, "")
        pieces: list[str | Thought] = [text] if self._thinking is None else self._thinking.feed(text)
        if last and self._thinking is not None:
            pieces += self._thinking.finish()
        parts: list[Part] = []
        for piece in pieces:
            if isinstance(piece, Thought):
                parts.append(piece)
            else:
                parts += self._said(piece)
        if last and self._parser is not None:
            parts += self._called(self._parser.finish())
        return parts

    def _said(self, text: str) -> list[Part]:
        if self._parser is not None:
            return self._called(self._parser.feed(text))
        return [text] if text else []

    def _called(self, found: Iterable[str | FoundCall]) -> list[Part]:
        assert self._tools is not None
        assert self._parser is not None
        parts: list[Part] = []
        for one in found:
            if isinstance(one, str):
                parts.append(one)
            elif self.calls and self._tools.single:
                self._parser.warn(f"the request allows one call of a tool: a further call of {one.name!r} was left out")
            else:
                parts.append(Call(self.calls, self._tools.call_id(), one.name, one.arguments))
                self.calls += 1
        return parts


@dataclass(slots=True)
class AnswerParts:
    """Reads the answers to one request.

    tools: what they may call. thinking: makes the parser of an answer, where the model marks what it thinks.
    control: markers that are tokens without a text.
    """

    tools: ToolUse | None = None
    thinking: Callable[[], ThinkingParser] | None = None
    control: dict[int, str] = field(default_factory=dict)
    readers: dict[int, PartReader] = field(default_factory=dict, init=False)

    def reader(self, index: int) -> PartReader:
        """Returns the reader of one of the answers."""
        if index not in self.readers:
            thinking = None if self.thinking is None else self.thinking()
            self.readers[index] = PartReader(self.tools, thinking, self.control)
        return self.readers[index]

    def of_event(self, index: int, event: TokenEvent) -> list[Part]:
        """Returns the parts that became certain with an event of an answer."""
        return self.reader(index).read(event.token_id, event.text, last=event.finish is not None)

    def of_answer(self, index: int, answer: Answer) -> list[Part]:
        """Returns the parts of a whole answer, neighbouring texts and thoughts joined."""
        reader = self.reader(index)
        rest = answer.text[sum(len(event.text) for event in answer.events) :]
        pieces = [part for event in answer.events for part in reader.read(event.token_id, event.text)]
        return joined([*pieces, *reader.read(-1, rest, last=True)])

    @property
    def warnings(self) -> list[str]:
        """What is wrong with calls of the answers."""
        return [warning for reader in self.readers.values() for warning in reader.warnings]


def said(parts: Iterable[Part]) -> str:
    """Returns what an answer says."""
    return "".join(part for part in parts if isinstance(part, str))


def thoughts(parts: Iterable[Part]) -> str:
    """Returns what an answer thinks."""
    return "".join(part.text for part in parts if isinstance(part, Thought))
