"""Tools of a chat: what its answers may call, as the model is told, and what an answer must match where it has to call."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.core.settings import Settings
from steering.engine.api import Engine
from steering.engine.capabilities import thinking_format, tool_format_of
from steering.errors import InvalidRequest, LimitExceeded, UnsupportedParameter
from steering.model.thinking import SWITCHES
from steering.model.tool_calls import CallParser, ToolFormat
from steering.pairs import ChatMessage, ContinuedMessage, Role, ToolCall, ToolMessage, continued
from steering.schemas.messages import SamplingFields
from steering.schemas.structured import MAX_GRAMMAR, MAX_SCHEMA_DEPTH, bounded
from steering.strict_json import load_json, size_of
from steering.threads import run_in_thread

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
    """Returns a call whose arguments are written as text, which some servers leave empty. Raises InvalidRequest for another text than a
    JSON object."""
    value = load_json(arguments.strip() or "{}", "the arguments of a call", param=param, depth=MAX_SCHEMA_DEPTH)
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


NO_ARGUMENTS: dict[str, Any] = {"additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the answers to a request may call.

    definitions: the functions as chat templates read them; none where only earlier answers called some.
    names: of the functions.
    grammar: what an answer must match, in Lark's notation; None where it may call or not.
    single: whether an answer has at most one call.
    """

    form: ToolFormat
    definitions: tuple[dict[str, Any], ...]
    names: frozenset[str]
    grammar: str | None
    single: bool
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, form: ToolFormat, offer: Offer) -> "ToolUse":
        """Checks the schemas of an offer, which takes long for large ones: to be called in a thread. form: how the model writes
        calls. Raises InvalidRequest for a schema that is too large or not of an object, LimitExceeded for a grammar that is too long."""
        schemas = {tool.name: _schema(tool) for tool in offer.tools}
        # templates read the description, and the properties, without asking whether there are any
        functions = (
            {"name": one.name, "description": one.description or "", "parameters": schemas[one.name]}
            for one in offer.tools
        )
        definitions = tuple({"type": "function", "function": one} for one in functions)
        held = {offer.named: schemas[offer.named]} if offer.named is not None else schemas if offer.required else {}
        grammar = form.grammar(held, several=not offer.single) if held else None
        if grammar is not None and len(grammar) > MAX_GRAMMAR:
            what = f"the schemas of the tools that 'tool_choice' requires have {len(grammar)} characters together"
            raise LimitExceeded(f"{what}; at most {MAX_GRAMMAR}", param="tools")
        warnings: tuple[str, ...] = ()
        if grammar is None and (strict := [tool.name for tool in offer.tools if tool.strict]):
            warnings = (
                f"'strict' of {', '.join(strict[:8])}: arguments are held to their schema only where 'tool_choice' requires a call",
            )
        return cls(form, definitions, frozenset(schemas), grammar, offer.single, warnings)

    def shown(self, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """Returns a conversation with the tools, which its first message carries."""
        return (replace(as_tool_message(messages[0]), tools=self.definitions), *messages[1:])

    def held(self, fields: SamplingFields) -> SamplingFields:
        """Returns the sampling fields of an answer that must call."""
        return fields if self.grammar is None else fields.model_copy(update={"guided_grammar": self.grammar})

    def parser(self) -> CallParser:
        """Returns what reads the calls of one answer."""
        return CallParser(self.form, self.names)

    def call_id(self) -> str:
        """Returns an id for a call that the templates of the model's family accept."""
        length = self.form.id_length
        return secrets.token_hex(length)[:length] if length else f"call_{secrets.token_hex(12)}"


def _schema(tool: OfferedTool) -> dict[str, Any]:
    """Returns the schema of the arguments. Raises InvalidRequest for one that is too large, or of something else than an object."""
    given = NO_ARGUMENTS if tool.parameters is None else tool.parameters
    schema: dict[str, Any] = {"type": "object", "properties": {}} | given
    try:
        bounded(schema)
    except ValueError as error:
        raise InvalidRequest(f"function {tool.name!r}: {error}", param=tool.param) from None
    if (kind := schema["type"]) != "object":
        raise InvalidRequest(
            f"function {tool.name!r}: arguments are an object, the schema has type {str(kind)[:40]!r}", param=tool.param
        )
    return schema


def thinking_of(engine: Engine, choice: ThinkingSwitch | None) -> bool | None:
    """Returns what the chat template is told about thinking; None where it is told nothing. Raises UnsupportedParameter for thinking by a
    model that does not mark it, and where nothing keeps the model from it."""
    known, name = thinking_format(engine), engine.info.name
    if choice is None or (known is None and not choice.wanted):
        return None
    if known is None:
        why = f"model {name!r} does not think: its chat template has no markers of thinking that are known"
        raise UnsupportedParameter(why, param=choice.param)
    if not known.switch and not choice.wanted:
        why = f"nothing keeps model {name!r} from thinking: its chat template has none of {', '.join(SWITCHES)}"
        raise UnsupportedParameter(why, param=choice.param)
    return choice.wanted if known.switch else None


def as_tool_message(message: ChatMessage) -> ToolMessage:
    """Returns a message that can carry what holds for the whole conversation."""
    return message if isinstance(message, ToolMessage) else ToolMessage(message.role, message.content)


async def offered(
    engine: Engine, messages: tuple[ChatMessage, ...], offer: Offer, thinking: ThinkingSwitch | None = None
) -> tuple[tuple[ChatMessage, ...], ToolUse | None]:
    """Returns a conversation with its tools and the choice about thinking, and what its answers may call; None where no tools are
    used. Raises UnsupportedParameter for a model that does not know tools, InvalidRequest where the last message is continued, and what
    `ToolUse.of` and `thinking_of` raise."""
    think = thinking_of(engine, thinking)
    if think is not None and not isinstance(messages[0], ContinuedMessage):  # an answer that is continued has begun
        first = as_tool_message(messages[0])
        messages = (replace(first, thinking=think), *messages[1:])
    if not offer.tools and not any(isinstance(one, ToolMessage) and (one.calls or one.call_id) for one in messages):
        return messages, None
    form = tool_format_of(engine)
    if isinstance(messages[-1], ContinuedMessage):
        raise InvalidRequest("an answer with tools cannot continue the last message", param="messages")
    tools = await run_in_thread(ToolUse.of, form, offer)
    return tools.shown(messages), tools
