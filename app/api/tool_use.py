"""Tools of a chat: the conversation with its calls and results, what an answer must match where it has to call, and calls as OpenAI writes them."""

import secrets
from dataclasses import dataclass
from typing import Any

from app.api.openai_schemas import ChatMessage as Message
from app.api.openai_schemas import ChatRequest, FunctionDefinition, NamedTool
from steering.engine.api import Engine
from steering.engine.capabilities import tool_format_of
from steering.errors import InvalidRequest, LimitExceeded
from steering.model.tool_calls import CallParser, FoundCall, ToolFormat
from steering.pairs import ChatMessage, ToolCall, ToolMessage
from steering.schemas.messages import SamplingFields
from steering.schemas.structured import MAX_GRAMMAR, MAX_SCHEMA_DEPTH, bounded
from steering.strict_json import load_json

NO_ARGUMENTS: dict[str, Any] = {"additionalProperties": False}


def conversation(body: ChatRequest) -> tuple[ChatMessage, ...]:
    """Returns the conversation with its tools. Takes long for large tools: to be called in a thread then. Raises InvalidRequest for
    schemas that are too large or not of objects, arguments that are not JSON, and results of calls that were not made."""
    if not body.uses_tools:
        return tuple(ChatMessage(_role(one), one.text) for one in body.messages)
    tools = tuple(_definition(index, tool.function) for index, tool in enumerate(body.offered))
    made: dict[str, str] = {}
    messages = []
    for number, one in enumerate(body.messages):
        calls = _calls(number, one)
        made |= {call.id: call.name for call in calls}
        name = one.name if one.tool_call_id is None else made.get(one.tool_call_id)
        if one.tool_call_id is not None and name is None:
            raise InvalidRequest(
                f"no message before it has a call with the id {one.tool_call_id!r}",
                param=f"messages.{number}.tool_call_id",
            )
        first = tools if not number else ()
        messages.append(
            ToolMessage(_role(one), one.text, first, calls, one.tool_call_id, name if one.tool_call_id else None)
        )
    return tuple(messages)


def _role(message: Message) -> Any:
    return "system" if message.role == "developer" else message.role


def _definition(index: int, function: FunctionDefinition) -> dict[str, Any]:
    """Returns a function as chat templates read it."""
    # templates read the description, and the properties, without asking whether there are any
    description, parameters = function.description or "", _schema(index, function)
    return {
        "type": "function",
        "function": {"name": function.name, "description": description, "parameters": parameters},
    }


def _schema(index: int, function: FunctionDefinition) -> dict[str, Any]:
    """Returns the schema of the arguments. Raises InvalidRequest for one that is too large, or of something else than an object."""
    param = f"tools.{index}.function.parameters"
    schema = _schema_of(function)
    try:
        bounded(schema)
    except ValueError as error:
        raise InvalidRequest(f"function {function.name!r}: {error}", param=param) from None
    if (kind := schema["type"]) != "object":
        raise InvalidRequest(
            f"function {function.name!r}: arguments are an object, the schema has type {str(kind)[:40]!r}", param=param
        )
    return schema


def _schema_of(function: FunctionDefinition) -> dict[str, Any]:
    return {"type": "object", "properties": {}} | (NO_ARGUMENTS if function.parameters is None else function.parameters)


def _calls(number: int, message: Message) -> tuple[ToolCall, ...]:
    found = []
    for index, call in enumerate(message.tool_calls or ()):
        param = f"messages.{number}.tool_calls.{index}.function.arguments"
        arguments = load_json(call.function.arguments, "the arguments of a call", param=param, depth=MAX_SCHEMA_DEPTH)
        if not isinstance(arguments, dict):
            raise InvalidRequest("the arguments of a call are a JSON object, as text", param=param)
        found.append(ToolCall(call.id, call.function.name, arguments))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the answers to a request may call.

    names: the functions; none where only earlier answers called some.
    grammar: what an answer must match, in Lark's notation; None where it may call or not.
    single: whether an answer has at most one call.
    """

    form: ToolFormat
    names: frozenset[str]
    grammar: str | None
    single: bool
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, engine: Engine, body: ChatRequest) -> "ToolUse":
        """Raises UnsupportedParameter for a model whose chat template has no tools, LimitExceeded for a grammar that is too long."""
        form, choice = tool_format_of(engine), body.tool_choice
        single = body.parallel_tool_calls is False
        schemas = {tool.function.name: _schema_of(tool.function) for tool in body.offered}
        grammar: str | None = None
        warnings: tuple[str, ...] = ()
        if isinstance(choice, NamedTool):
            name = choice.function.name
            grammar = form.grammar({name: schemas[name]}, several=not single)
        elif choice == "required":
            grammar = form.grammar(schemas, several=not single)
        elif strict := [tool.function.name for tool in body.offered if tool.function.strict]:
            warnings = (
                f"'strict' of {', '.join(strict[:8])}: arguments are held to their schema only where 'tool_choice' is 'required' "
                "or names a function",
            )
        if grammar is not None and len(grammar) > MAX_GRAMMAR:
            what = f"the schemas of the tools that 'tool_choice' requires have {len(grammar)} characters together"
            raise LimitExceeded(f"{what}; at most {MAX_GRAMMAR}", param="tools")
        return cls(form, frozenset(schemas), grammar, single, warnings)

    def held(self, fields: SamplingFields) -> SamplingFields:
        """Returns the sampling fields of an answer that must call."""
        return fields if self.grammar is None else fields.model_copy(update={"guided_grammar": self.grammar})

    def parser(self) -> CallParser:
        """Returns what reads the calls of one answer."""
        return CallParser(self.form, self.names)

    def call(self, index: int, found: FoundCall) -> dict[str, Any]:
        """Returns a call in OpenAI's form, with an id that the templates of the family accept. index: of the call in its answer."""
        length = self.form.id_length
        name = secrets.token_hex(length)[:length] if length else f"call_{secrets.token_hex(12)}"
        function = {"name": found.name, "arguments": found.arguments}
        return {"index": index, "id": name, "type": "function", "function": function}


def call_parts(call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the deltas of a call, of which a client joins the arguments: its id and name, then the arguments."""
    function = call["function"]
    begun = {**call, "function": {**function, "arguments": ""}}
    return begun, {"index": call["index"], "function": {"arguments": function["arguments"]}}
