"""How models write calls of tools: a table of formats, chosen by what the chat template contains; a parser of growing answers; and
the grammar of answers that must call."""

import json
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

from steering.errors import InvalidRequest
from steering.model.thinking import WHITE_SPACE, StreamParser
from steering.strict_json import load_json

MAX_DEPTH = 64
"""Levels of lists and objects in a call."""
ARGUMENT_KEYS = ("arguments", "parameters")
"""Names under which a call has its arguments."""
MAX_WARNINGS = 8
"""Of one answer."""
FENCE = ("```json", "```")
"""Around JSON in Markdown."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes calls: `begin`, JSON, `end`.

    contains, lacks: strings of its chat templates, and strings of those of other formats.
    key: of the arguments. many: whether the JSON is a list of calls, not one call.
    bare: an answer that starts with JSON is a call too, and calls are separated by `;`.
    loose: some models of the family leave the markers out: an answer that starts with JSON is a call too, also in a FENCE.
    space: what the family writes between the markers and the JSON, and between calls.
    id_length: of ids that its templates accept, letters and digits; 0 for any.
    tokens: the markers that are tokens of the tokenizer's own. control: those of them that decoding leaves out.
    """

    name: str
    contains: Sequence[str]
    begin: str
    end: str = ""
    key: str = "arguments"
    lacks: Sequence[str] = ()
    many: bool = False
    bare: bool = False
    loose: bool = False
    space: str = ""
    id_length: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)
    control: Mapping[int, str] = field(default_factory=dict)

    def grammar(self, parameters: Mapping[str, dict[str, Any]], several: bool) -> str:
        """Returns the grammar, in Lark's notation, whose strings are those of JSON, of answers that call functions and say nothing else.
        parameters: the schema of the arguments of each function. several: whether an answer may have more than one call."""
        rules = []
        for index, (name, schema) in enumerate(parameters.items()):
            begin = json.dumps(f'{{"name": "{name}", "{self.key}": ')
            rules.append(f"call_{index}: {begin} args_{index} {json.dumps('}')}")
            rules.append(f"args_{index}: %json {json.dumps({'type': 'object'} | schema)}")
        call = f"({' | '.join(f'call_{index}' for index in range(len(parameters)))})"
        if self.many:
            more = f" ({json.dumps(', ')} {call})*" if several else ""
            start = f"{self._marker(self.begin)} {json.dumps('[')} {call}{more} {json.dumps(']')}"
        elif self.bare:
            start = call + (f" ({json.dumps('; ')} {call})*" if several else "")
        else:
            space = f" {json.dumps(self.space)} " if self.space else " "
            one = f"{self._marker(self.begin)}{space}{call}{space}{self._marker(self.end)}"
            start = one + (f" ({space}{one})*" if several else "")
        return "\n".join([f"start: {start}", *rules])

    @property
    def opening(self) -> str:
        """The first character of the JSON."""
        return "[" if self.many else "{"

    def begins(self, *, starts: bool) -> dict[str, str]:
        """Returns what may begin a call, each with its end; "" for JSON. starts: where markers may be left out."""
        found = {self.begin: self.end}
        if starts and (self.bare or self.loose):
            found[self.opening] = ""
        if starts and self.loose:
            found[FENCE[0]] = FENCE[1]
        return found

    def _marker(self, marker: str) -> str:
        # llguidance reads a token of the tokenizer's own by its id only, never as the characters of its name
        return f"<[{self.tokens[marker]}]>" if marker in self.tokens else json.dumps(marker)


_LINES = (files("steering.model") / "tool_formats.jsonl").read_text(encoding="utf-8").splitlines()
FORMATS = tuple(ToolFormat(**json.loads(line)) for line in _LINES)
"""Hermes and Qwen 2.5 and 3; Mistral up to tokenizer v3; Llama 3.1 to 3.3. The first that fits a template is its format."""
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Around calls and results: tokens of some tokenizers that decoding does not leave out."""


def format_of(template: str, added: Mapping[str, int], special: Collection[str]) -> ToolFormat | None:
    """Returns the format of a chat template that has tools, None where it has none or an unknown format.
    added: the tokens that the tokenizer has beside its vocabulary. special: those that decoding leaves out."""
    if "tools" not in template:
        return None
    template = template.replace('\\"', '"')
    for known in FORMATS:
        if all(one in template for one in known.contains) and not any(one in template for one in known.lacks):
            tokens = {marker: added[marker] for marker in (known.begin, known.end) if marker in added}
            control = {token: marker for marker, token in tokens.items() if marker in special}
            return replace(known, tokens=tokens, control=control)
    return None


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A whole and valid call in an answer. arguments: a JSON object, as text."""

    name: str
    arguments: str


@dataclass(slots=True)
class JsonReader:
    """Finds the end of a JSON object or list whose first character was read. depth: its open levels, 0 at the end."""

    depth: int = 1
    string: bool = False
    escaped: bool = False

    def read(self, character: str) -> int:
        """Reads the next character. Returns the open levels."""
        if self.string:
            self.string = self.escaped or character != '"'
            self.escaped = character == "\\" and not self.escaped
        elif character == '"':
            self.string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
        return self.depth


class CallParser(StreamParser[FoundCall]):
    """Separates the text of an answer from its calls as it grows, however it is cut into pieces. At the end of the
    answer a call without its end marker counts; one without the end of its JSON is text, as is what is none of the
    `names`, with a warning."""

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self.warnings: list[str] = []
        self._form, self._names = form, names
        super().__init__()

    def warn(self, warning: str) -> None:
        """Adds a warning about the answer, unless it has this one, or MAX_WARNINGS already."""
        if warning not in self.warnings and len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(warning)

    def _read(self) -> Generator[None, str, None]:
        # white space, and then the start of a marker: the next characters decide whether they are text
        blank, held, after_call = list[str](), "", False
        space, begins = WHITE_SPACE, self._form.begins(starts=True)
        while character := (yield from self._next()):
            if not held and character in space:
                blank.append(character)
                continue
            held += character
            if held in begins:
                after_call = yield from self._read_call([*blank, *held], begins[held])
                blank, held = [], ""
            elif any(one.startswith(held) for one in begins):
                continue
            else:  # the longest end of it that may be the start of a marker is held
                begin = self._form.begin
                cut = next(at for at in range(1, len(held) + 1) if begin.startswith(held[at:].lstrip(WHITE_SPACE)))
                self._found += [*blank, held[:cut]]
                rest, after_call = held[cut:], False
                held = rest.lstrip(WHITE_SPACE)
                blank = list(rest[: len(rest) - len(held)])
            begins = self._form.begins(starts=after_call)
            space = WHITE_SPACE + ";" * (after_call and self._form.bare)  # between calls, where it is left out
        if held or not after_call:
            self._found += [*blank, held]

    def _read_call(self, call: list[str], end: str) -> Generator[None, str, bool]:
        """Reads the rest of a call, whose characters up to its marker are given. Returns False for what is no call. Then its text is
        that up to the marker, or with the JSON after it, and what follows is read again: it may begin another call."""
        opening, unended = self._form.opening, "the answer ends within a call of a tool"
        while call[-1] != opening:
            character = yield from self._next()
            if not character or character not in WHITE_SPACE + opening:
                return self._refuse(call, "a call of a tool is not JSON" if character else unended, character)
            call.append(character)
        begin, json = len(call) - 1, JsonReader()
        while json.depth:
            if not (character := (yield from self._next())):
                return self._refuse(call, unended)
            call.append(character)
            if json.read(character) > MAX_DEPTH:
                return self._refuse(call, f"a call of a tool is nested deeper than {MAX_DEPTH} levels")
        try:
            calls = self._parsed("".join(call[begin:]))
        except InvalidRequest as error:
            return self._refuse(call, error.message)
        marker, after = "", list[str]()
        while marker != end and (character := (yield from self._next())):
            after.append(character)
            marker = (marker + character).lstrip(WHITE_SPACE)
            if not end.startswith(marker):
                return self._refuse(call, f"a call of a tool lacks {end!r}", after)
        self._found += calls
        return True

    def _refuse(self, call: Iterable[str], warning: str, again: Sequence[str] = ()) -> bool:
        self.warn(f"{warning}; it is returned as text")
        self._found.append("".join(call))
        self._again += reversed(again)
        return False

    def _parsed(self, text: str) -> list[FoundCall]:
        """Reads the JSON of a call, or of several. Raises InvalidRequest where it is none of a function that may be called."""
        value = load_json(text, "a call of a tool", depth=MAX_DEPTH)
        calls = value if isinstance(value, list) else [value]
        if not calls:
            raise InvalidRequest("a call of a tool names no function")
        return [self._checked(call) for call in calls]

    def _checked(self, call: Any) -> FoundCall:
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest("a call of a tool has no name")
        if name not in self._names:
            raise InvalidRequest(f"the answer calls {name[:64]!r}, which is none of the tools")
        arguments: Any = next((call[key] for key in ARGUMENT_KEYS if key in call), {})
        if not isinstance(arguments, dict):
            raise InvalidRequest(f"the arguments of a call of {name!r} are no JSON object")
        return FoundCall(name, json.dumps(arguments, ensure_ascii=False))
