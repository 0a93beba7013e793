"""The phases of a conversation: prompt, thinking, answer, call of a tool, JSON. A state machine reads the tokens of an answer as they
are chosen; its markers are those of thinking.py and tool_calls.py, and so is what counts as thinking and as a call: an answer thinks at
its beginning only, and calls only where tools are offered. What these return as text is in the phase `answer`.

What a token is follows from the tokens up to it alone, since it is steered before the next one is known. So a token that may begin a
marker, as `<` may begin `<tool_call>`, has the phase of that marker. White space has the phase of what comes before it until the
answer's first other character: what is predicted at it may still be a call. The JSON of what begins as a call is in `tool`, also
where it turns out to be none of the tools.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from steering.model.thinking import WHITE_SPACE, beginning, in_template
from steering.model.tool_calls import MAX_DEPTH, JsonReader, ToolFormat
from steering.pairs import ChatMessage
from steering.spec import PhaseName

GPT_OSS = ("<|channel|>analysis<|message|>", "<|end|>")
"""Its markers of thinking are several tokens each, which `thinking.py` does not separate from the answer's text. It may think anywhere."""
_FIRST: Mapping[PhaseName, int] = {"tool": 0, "json": 1, "thinking": 2, "answer": 3, "prompt": 4}
"""Where a token has characters of several phases, it has the first of them here: what must not be steered by accident wins."""


def thinking_of(template: str) -> tuple[str, str] | None:
    """Returns what begins and ends the thinking of models with a chat template; None where it has none in a known form."""
    if (known := in_template(template)) is not None:
        return known.begin, known.end
    return GPT_OSS if GPT_OSS[0] in template else None


@dataclass(frozen=True)
class PhaseRules:
    """What decides the phases of one answer.

    thinking: its markers. anywhere: whether it may think later than at the beginning of the answer, and again.
    form: how it calls tools; None where it may call none. tools: whether they are offered, so that JSON without a marker is a call.
    json: whether all of the answer is JSON.
    opened: whether the answer begins in its thinking, which the prompt has begun. may_begin: whether it may begin to think.
    """

    thinking: tuple[str, str] | None = None
    form: ToolFormat | None = None
    tools: bool = True
    json: bool = False
    opened: bool = False
    may_begin: bool = True
    anywhere: bool = False

    @classmethod
    def of(
        cls, thinking: tuple[str, str] | None, form: ToolFormat | None, *, tools: bool = True, json: bool = False
    ) -> "PhaseRules":
        """Returns the rules of a model's answer. thinking: the markers of its chat template."""
        return cls(thinking, form, tools, json, anywhere=thinking == GPT_OSS)

    def starting(self, *, opened: bool, may_begin: bool) -> "PhaseRules":
        """Returns the rules where the prompt has begun the thinking or not, and the answer may begin it or not."""
        return replace(self, opened=opened and self.thinking is not None, may_begin=may_begin)

    def after(self, last: ChatMessage | None, text: str) -> "PhaseRules":
        """Returns the rules behind the end of a prompt. last: its last message; None where it is no conversation."""
        if self.thinking is None:
            return self
        if last is None:
            begin, end = map(text.rfind, self.thinking)
            return self.starting(opened=begin > end, may_begin=True)
        opened, may_begin = beginning(self.thinking, last, text)
        return self.starting(opened=opened, may_begin=may_begin)

    @property
    def markers(self) -> frozenset[str]:
        """What begins or ends a phase."""
        return frozenset({*(self.thinking or ()), *([self.form.begin, self.form.end] if self.form else [])} - {""})

    @property
    def thinks(self) -> bool:
        """Whether some of the answer can be thinking."""
        return self.thinking is not None and (self.anywhere or self.may_begin or self.opened)

    @cached_property
    def possible(self) -> frozenset[PhaseName]:
        """The phases that tokens of the prompt and the answer can have."""
        if self.json:
            return frozenset[PhaseName]({"prompt", "json"})
        others: dict[PhaseName, object] = {"thinking": self.thinks, "tool": self.form}
        return frozenset[PhaseName]({"prompt", "answer", *(phase for phase, found in others.items() if found)})

    @cached_property
    def _beginnings(self) -> Mapping[tuple[bool, bool], dict[str, PhaseName]]:
        thinks: dict[str, PhaseName] = {self.thinking[0]: "thinking"} if self.thinking else {}
        found = dict[tuple[bool, bool], dict[str, PhaseName]]()
        for starts in (True, False):
            found[False, starts] = dict.fromkeys(self.calls(starts=starts), "tool")
            found[True, starts] = found[False, starts] | thinks
        return found

    def calls(self, *, starts: bool) -> dict[str, str]:
        """Returns what may begin a call, each with what ends it. starts: see `begins`."""
        return {} if self.form is None else self.form.begins(starts=starts and self.tools)

    def begins(self, *, fresh: bool, starts: bool) -> dict[str, PhaseName]:
        """Returns the markers that may begin a phase. fresh: the answer has had nothing but white space so far. starts: its text has not
        begun, or not since a call."""
        return self._beginnings[fresh or self.anywhere, starts]


def _cut(text: str, begins: Iterable[str]) -> int:
    """Returns where the longest end of a text begins that may be the start of a marker, which is held."""
    return next(
        at for at in range(len(text) + 1) if at == len(text) or any(one.startswith(text[at:]) for one in begins)
    )


Place: TypeAlias = tuple[PhaseName | None, str]
"""The phase of the last character that was read, or of what was held until it; None where it is held. And the marker that it ends."""


class PhaseTracker:
    """The phases of the tokens of one answer as it grows. text_of: the text of a token, those of control tokens included."""

    def __init__(self, rules: PhaseRules, text_of: Callable[[int], str]) -> None:
        self._rules, self._text_of = rules, text_of
        self.reset()

    def reset(self) -> None:
        """Forgets the answer."""
        self._phases: list[PhaseName] = []
        self._last: PhaseName = "prompt"
        self._go_on("prompt", begun=False, fresh=self._rules.may_begin)
        self._reading = self._read()
        next(self._reading)

    def add(self, token_id: int) -> PhaseName:
        """Adds the next token of the answer, and returns its phase. A token without text has that of the one before it."""
        text = "" if self._rules.json else self._text_of(token_id)
        found = {phase for character in text if (phase := self._reading.send(character)) is not None}
        if self._held and text:
            found.add(next(phase for begin, phase in self._begins().items() if begin.startswith(self._held)))
        self._last = "json" if self._rules.json else min(found, key=_FIRST.__getitem__, default=self._last)
        self._phases.append(self._last)
        return self._last

    def phases(self, ids: Sequence[int], prompt_length: int, first: int, count: int) -> list[PhaseName]:
        """Returns the phases of `count` positions of a prompt and its answer from one on. ids: of all positions up to them."""
        end = first + count
        for position in range(prompt_length + len(self._phases), end):
            self.add(ids[position])
        in_prompt: list[PhaseName] = ["prompt"] * (min(end, prompt_length) - first)
        return in_prompt + self._phases[max(first - prompt_length, 0) : max(end - prompt_length, 0)]

    def _go_on(self, before: PhaseName, *, begun: bool, fresh: bool = False) -> None:
        """Goes on in text. before: the phase of white space until the text begins, if it has not begun. fresh: see `begins`."""
        self._before, self._begun, self._fresh = before, begun, fresh
        self._held = ""  # the last characters of text, where they may begin a marker

    def _begins(self) -> dict[str, PhaseName]:
        return self._rules.begins(fresh=self._fresh, starts=not self._begun)

    def _read(self) -> Generator[PhaseName | None, str, None]:
        """Receives the characters of the answer; yields the phase of each, see `Place`."""
        think, end = self._rules.thinking or ("", "")
        place: Place = None, think if self._rules.opened else ""
        while True:
            phase, begin = place
            if not begin:
                place = self._in_text((yield phase))
            elif begin == think:
                place = yield from self._in_thinking(phase, end)
            else:
                assert self._rules.form is not None, "it has this marker"
                place = yield from self._in_call(begin, self._rules.form)

    def _in_text(self, character: str) -> Place:
        rules, text = self._rules, self._held + character
        if text.strip(WHITE_SPACE) and not (rules.thinking and rules.thinking[0].startswith(text)):
            self._fresh = False
        cut = _cut(text, self._begins())
        bare = rules.form is not None and rules.form.bare and rules.tools
        space = WHITE_SPACE + (";" if bare and self._before == "tool" else "")
        if text[:cut].strip(space):
            self._begun, self._before = True, "answer"
            cut = _cut(text, self._begins())
        self._held = text[cut:]
        if phase := self._begins().get(self._held):
            begin, self._held = self._held, ""
            return phase, begin
        if self._held:
            return "answer" if cut else None, ""
        return "answer" if self._begun else self._before, ""

    def _in_thinking(self, phase: PhaseName | None, end: str) -> Generator[PhaseName | None, str, Place]:
        held = ""
        while held != end:
            held, phase = held + (yield phase), "thinking"
            held = next(held[at:] for at in range(len(held) + 1) if end.startswith(held[at:]))
        self._go_on("thinking", begun=False)
        return phase, ""

    def _in_call(self, begin: str, form: ToolFormat) -> Generator[PhaseName | None, str, Place]:
        """Reads the JSON and the end marker of a call, each after white space. Where it turns out to be none, the answer goes on in text."""
        if begin != form.opening:
            while (character := (yield "tool")) in WHITE_SPACE:
                pass
            if character != form.opening:
                self._go_on("answer", begun=True)
                return self._in_text(character)
        json = JsonReader()
        while json.depth:
            if json.read((yield "tool")) > MAX_DEPTH:
                self._go_on("answer", begun=True)
                return "answer", ""
        read, end = "", self._rules.calls(starts=True)[begin]
        while read != end:
            read = (read + (yield "tool")).lstrip(WHITE_SPACE)
            if not end.startswith(read):
                self._go_on("answer", begun=True)
                return [self._in_text(one) for one in read][-1]  # it may begin another call
        self._go_on("tool", begun=False)
        return "tool", ""
