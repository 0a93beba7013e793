"""What a request of any API means: its conversation as the model reads it, the tools it offers, and whether the model thinks first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from app.core.settings import Settings
from steering.errors import InvalidRequest, LimitExceeded
from steering.pairs import ChatMessage, Role, ToolCall, ToolMessage, continued
from steering.schemas.structured import MAX_SCHEMA_DEPTH
from steering.strict_json import load_json, size_of

MAX_TOOLS = 128
"""Of a request, and calls of a message."""


@dataclass(slots=True)
class Conversation:
    """The messages of a request, in the order in which they are added.

    called: the function of each call so far, by the id of the call.
    """

    messages: list[ChatMessage] = field(default_factory=list)
    called: dict[str, str] = field(default_factory=dict)

    def say(
        self, role: Role | Literal["developer"], text: str, calls: Iterable[ToolCall] = (), reasoning: str = ""
    ) -> None:
        """Adds a message. `developer` is a system message."""
        own: Role = "system" if role == "developer" else role
        made = tuple(calls)
        self.called |= {call.id: call.name for call in made}
        carries = made or reasoning
        self.messages.append(
            ToolMessage(own, text, calls=made, reasoning=reasoning) if carries else ChatMessage(own, text)
        )

    def answer_call(self, call: str, result: str, param: str) -> None:
        """Adds the result of a call. Raises InvalidRequest naming the field where no message before it has the call."""
        if call not in self.called:
            raise InvalidRequest(f"no message before it has a call with the id {call!r}", param=param)
        self.messages.append(ToolMessage("tool", result, call_id=call, name=self.called[call]))

    def continuing(self) -> tuple[ChatMessage, ...]:
        """Returns the messages, of which a last one of the assistant is continued. Raises InvalidRequest where that one is empty,
        or has more than a text."""
        last = self.messages[-1]
        if last.role != "assistant":
            return tuple(self.messages)
        if isinstance(last, ToolMessage) or not last.content.strip():
            what = "has calls of tools or thinking" if isinstance(last, ToolMessage) else "is empty"
            raise InvalidRequest(
                f"the last message is the assistant's, which the answer continues: only a text is continued, and it {what}",
                param="messages",
            )
        return continued(tuple(self.messages))


def call_of_text(call: str, function: str, arguments: str, param: str) -> ToolCall:
    """Returns a call whose arguments are written as text. Raises InvalidRequest for another text than a JSON object."""
    value = load_json(arguments, "the arguments of a call", param=param, depth=MAX_SCHEMA_DEPTH)
    if not isinstance(value, dict):
        raise InvalidRequest("the arguments of a call are a JSON object, as text", param=param)
    return ToolCall(call, function, value)


def check_arguments(texts: Iterable[str], settings: Settings) -> int:
    """Returns the bytes that parsing the arguments of all calls takes. Raises LimitExceeded for more JSON values in them than a body
    may have: as texts they count as one value each there."""
    sizes = [size_of(text.encode()) for text in texts]
    if sum(size.elements for size in sizes) > settings.max_body_elements:
        most = settings.max_body_elements
        raise LimitExceeded(f"the arguments of all calls have more than {most} elements", param="messages")
    return sum(size.memory for size in sizes)


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A function that an answer may call.

    parameters: the JSON schema of its arguments; None where it takes none. param: the field of the request that has it.
    """

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    param: str
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request.

    required: the answer must call one of them. named: the one that it must call. single: it has at most one call.
    """

    tools: tuple[OfferedTool, ...] = ()
    required: bool = False
    named: str | None = None
    single: bool = False


def check_tools(names: Sequence[str], named: str | None = None, *, required: bool = False) -> None:
    """Raises InvalidRequest for two tools of one name, and for a choice that names none of them or requires one of none."""
    if len(names) != len(set(names)):
        raise InvalidRequest("'tools' has two functions of one name", param="tools")
    if named is not None and named not in names:
        listed = ", ".join(names[:8]) or "none"
        raise InvalidRequest(f"'tool_choice' names {named!r}; 'tools' has {listed}", param="tool_choice")
    if required and not names:
        raise InvalidRequest("a 'tool_choice' that requires a call needs 'tools'", param="tool_choice")


@dataclass(frozen=True, slots=True)
class ThinkingSwitch:
    """Whether the model is to think before it answers. param: the field that says so. level: how much, which no template is told."""

    wanted: bool
    param: str
    level: str | None = None

    @property
    def warnings(self) -> list[str]:
        """What is not done."""
        if self.level is None or not self.wanted:
            return []
        return [f"{self.param!r}: {self.level!r} is as good as any other: this server has no levels of thinking"]
