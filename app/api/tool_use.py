"""Tools of a chat: what its answers may call, as the model is told, and what an answer must match where it has to call."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.api.conversation import Offer, OfferedTool, ThinkingSwitch
from steering.engine.api import Engine
from steering.engine.capabilities import thinking_format, tool_format_of
from steering.errors import InvalidRequest, LimitExceeded, UnsupportedParameter
from steering.model.thinking import SWITCHES
from steering.model.tool_calls import CallParser, ToolFormat
from steering.pairs import ChatMessage, ContinuedMessage, ToolMessage
from steering.schemas.messages import SamplingFields
from steering.schemas.structured import MAX_GRAMMAR, bounded
from steering.threads import run_in_thread

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
        definitions = tuple(_definition(tool, schemas[tool.name]) for tool in offer.tools)
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


def _definition(tool: OfferedTool, schema: dict[str, Any]) -> dict[str, Any]:
    # templates read the description, and the properties, without asking whether there are any
    function = {"name": tool.name, "description": tool.description or "", "parameters": schema}
    return {"type": "function", "function": function}


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
