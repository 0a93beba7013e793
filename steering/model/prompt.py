"""ModelTokenizer: converts text, messages or ids to the token ids of a model, and back, as a whole or piece by piece. Control
tokens come from templates only, never from a caller's text."""

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, pairwise, takewhile
from typing import Any, TypeAlias, cast

from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from steering.errors import ContextLengthExceeded, InvalidRequest
from steering.model import thinking, tool_calls
from steering.model.phases import PhaseRules, PhaseTracker, thinking_of
from steering.model.thinking import TAIL, ThinkingFormat
from steering.model.tool_calls import ToolFormat
from steering.pairs import ChatMessage, ContinuedMessage, ToolMessage
from steering.spec import PhaseName

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder returns for the first bytes of a character whose other bytes are still missing."""

MAX_HELD = 64
"""Tokens kept back at most. A character needs four; more is a run of bytes that is not text, or of control tokens."""


class TextDecoder:
    """Decodes token ids without control tokens. separators: control tokens between the parts of an answer, its text and
    calls of tools; no character or stop string crosses one."""

    def __init__(self, backend: Tokenizer, separators: Collection[int] = ()) -> None:
        self._backend = backend
        self.separators = frozenset(separators)
        self._length_of_one = cache(lambda token_id: len(self.text([token_id])))

    def text(self, token_ids: Sequence[int]) -> str:
        """Returns the text of these ids together."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def length(self, token_ids: Sequence[int]) -> int:
        """Returns the number of characters of their text."""
        return self._length_of_one(token_ids[0]) if len(token_ids) == 1 else len(self.text(token_ids))


class TextStream:
    """The text of one answer as it grows. The joined pieces, with that of flush, are the text of all its tokens.
    context: the ids before the first one, so that tokenizers that mark the start of words keep the first space."""

    # The decode stream of `tokenizers` raises an error where a model generates bytes that are not text.

    def __init__(self, decoder: TextDecoder, context: Sequence[int] = ()) -> None:
        self._decoder = decoder
        # With a context that ends within a character, that character would be returned again with its last byte.
        self._ids = [] if decoder.text(list(context)).endswith(BROKEN) else list(context)
        self._mark_returned()

    def step(self, token_id: int) -> str:
        """Returns the characters that this token completes; a separator completes what came before it."""
        if self.separates(token_id):
            piece = self.flush()
            # bytes before it and after it make no character
            self._ids = [token_id] if piece else [*self._ids, token_id]
            self._mark_returned()
            return piece
        self._ids.append(token_id)
        piece = self._pending()
        held = len(self._ids) - self._returned
        if not piece:
            if held >= MAX_HELD:  # control tokens only: decoding them again each time is quadratic
                del self._ids[self._returned :]
            return ""
        if piece.endswith(BROKEN) and held < MAX_HELD:
            return ""
        self._ids = self._ids[self._returned :]
        self._mark_returned()
        return piece

    def separates(self, token_id: int) -> bool:
        """Returns whether a token stands between parts of the answer."""
        return token_id in self._decoder.separators

    def flush(self) -> str:
        """Returns the incomplete character at the end, as the decoder writes it. Empty for whole text."""
        piece = self._pending()
        self._mark_returned()
        return piece

    def _mark_returned(self) -> None:
        """Notes that all ids are returned; they stay as the context in which the next ones are decoded."""
        self._returned, self._characters = len(self._ids), self._decoder.length(self._ids)

    def _pending(self) -> str:
        return self._decoder.text(self._ids)[self._characters :]


Prompt: TypeAlias = str | tuple[ChatMessage, ...] | tuple[int, ...]
Span: TypeAlias = tuple[int, int]
"""A half-open range of characters or of tokens."""

MARK = 3
"""Characters of a marker: one that no message contains, three times, so that templates do not trim it away."""
CONTEXT_LENGTH = 6
"""Prompt tokens that a TextStream receives: enough for the longest character and the word before it."""
PRIVATE_USE = range(0xE000, 0xF900)
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PRINTED}
_BYTES |= {chr(256 + number): byte for number, byte in enumerate(sorted({*range(256)} - {*_PRINTED}))}
"""How byte-level vocabularies write each byte (openai/gpt-2, encoder.py)."""
_IDS: dict[int, int] = {}
"""Every token id that was seen; there are as many as tokens in the vocabularies."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text in tokens. pieces: its parts, each with the number of characters before it. Ids and spans are made on
    demand, since that holds the interpreter and a text may be refused for its length."""

    pieces: tuple[tuple[int, Encoding], ...]

    def __len__(self) -> int:
        """Returns the number of tokens."""
        return sum(len(piece) for _, piece in self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids. Equal ones are one object, so that a token of a long text takes 8 bytes and not 40."""
        return tuple(chain.from_iterable(map(_IDS.setdefault, piece.ids, piece.ids) for _, piece in self.pieces))

    @property
    def spans(self) -> tuple[Span, ...]:
        """The characters of the text that each token stands for."""
        return tuple((base + start, base + end) for base, piece in self.pieces for start, end in piece.offsets)


class SafeEncoder:
    """Encodes as a tokenizer does, and with the strings of special tokens as plain text. Threads may share it.
    markers: strings that are plain text too in parts of a conversation, where they are tokens that are not special."""

    def __init__(self, backend: Tokenizer, markers: Collection[str] = ()) -> None:
        self._backend = backend
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True  # reads "<|im_end|>" as ten characters
        unknown = _unknown_token(backend)
        added = backend.get_added_tokens_decoder().items()
        self.special = {token_id: token.content for token_id, token in added if token.special}
        others = {i: token.content for i, token in added if not token.special and token.content in markers}
        self.control_ids = frozenset(i for i, content in self.special.items() if content != unknown)
        self._marker_ids = self.control_ids | others.keys()
        self._control_strings = sorted(filter(None, (self.special[i] for i in self.control_ids)))
        self._contents = sorted(filter(None, [*self.special.values(), *others.values()]), key=len, reverse=True)
        self._markers = _any_of(self._contents)
        self._control = _any_of([one for one in self._contents if one not in others.values()])

    def literal(self, text: str, most: int | None = None, *, markers: bool = False) -> Encoded:
        """Encodes a text as plain text, with `markers` these too. Raises InvalidRequest, ContextLengthExceeded."""
        avoided = self._marker_ids if markers else self.control_ids
        encoded = self._encode(self._plain, text, most)
        if avoided.isdisjoint(encoded.ids):
            return encoded
        tokens = zip(encoded.ids, encoded.spans, strict=True)
        cuts = [span[0] + 1 for token_id, span in tokens if token_id in avoided]
        # Some vocabularies merge plain characters into a control token: the text is cut between those characters.
        pieces = [(start, self._encode(self._plain, text[start:end])) for start, end in pairwise([0, *cuts, len(text)])]
        parts = _joined(pieces)
        if not avoided.isdisjoint(parts.ids):
            raise InvalidRequest("the text contains a control token that this tokenizer cannot encode as plain text")
        return parts

    def control_strings(self, text: str) -> tuple[str, ...]:
        """Returns the strings of control tokens that a text contains, which `literal` encodes as plain characters."""
        return tuple(one for one in self._control_strings if one in text)

    def marks(self, texts: Sequence[str]) -> str:
        """Returns two unused characters to stand around plain text in a template; none without special tokens."""
        special = any(content in text for text in texts for content in self._contents)
        return "".join(_unused_characters(texts, 2)) if special else ""

    def marked(self, text: str, marks: str, *, markers: bool) -> str:
        """Returns the text with marks around each string of a special token. markers: and around each marker."""
        opening, closing = marks[0], marks[1]
        return re.sub(self._markers if markers else self._control, lambda match: f"{opening}{match[0]}{closing}", text)

    def rendered(self, text: str, marks: str, most: int | None = None) -> Encoded:
        """Encodes a rendered template, marked parts as plain text. Spans count the text without marks."""
        if not marks:
            return self._encode(self._backend, text, most)
        pieces: list[tuple[int, Encoded]] = []
        base = 0
        marked = f"{marks[0]}({self._markers}){marks[1]}"
        for number, part in enumerate(re.split(marked, text)):
            # a template that cuts a message in two may leave one mark of a pair
            piece = part.translate(dict.fromkeys(map(ord, marks)))
            encoded = (
                self.literal(piece, most, markers=True) if number % 2 else self._encode(self._backend, piece, most)
            )
            pieces.append((base, encoded))
            base += len(piece)
        parts = _joined(pieces)
        _check_length(len(parts), most)
        return parts

    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the ids that the tokenizer adds before and after a text."""
        encoding = self._backend.encode("a")
        own = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
        return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])

    @staticmethod
    def _encode(backend: Tokenizer, text: str, most: int | None = None) -> Encoded:
        """Encodes a text while other threads run: `Tokenizer.encode` would hold the interpreter's lock."""
        (encoding,) = backend.encode_batch([text], add_special_tokens=False)
        _check_length(len(encoding), most)
        return Encoded(((0, encoding),))


def _any_of(strings: Sequence[str]) -> str:
    """Returns a regular expression of the strings, the first of which counts where several match."""
    return "|".join(map(re.escape, strings)) or r"(?!)"


def _unused_characters(texts: Sequence[str], count: int) -> list[str]:
    """Returns characters of the private use area that none of the texts contains."""
    used = set().union(*texts)
    unused = [chr(point) for point in PRIVATE_USE if chr(point) not in used][:count]
    if len(unused) < count:
        raise InvalidRequest("the messages use every character of the private use area of Unicode", param="messages")
    return unused


def _joined(pieces: Sequence[tuple[int, Encoded]]) -> Encoded:
    return Encoded(tuple((base + inner, piece) for base, part in pieces for inner, piece in part.pieces))


def _check_length(tokens: int, most: int | None) -> None:
    if most is not None and tokens > most:
        raise ContextLengthExceeded(f"the prompt has {tokens} tokens; at most {most} fit", param="prompt")


def _unknown_token(backend: Tokenizer) -> str | None:
    """Returns the token for text outside the vocabulary: marked special, but not a control token."""
    name = getattr(backend.model, "unk_token", None)
    if name is not None or not hasattr(backend.model, "unk_id"):
        return name
    unk_id = json.loads(backend.to_str())["model"].get("unk_id")
    return None if unk_id is None else backend.id_to_token(unk_id)


class ModelTokenizer:
    """A fast tokenizer that reads control strings (`<|im_end|>` and their like) in a caller's text as plain text.
    Threads may share it.

    vocab_size: rows of the model's embedding, some of which no token may use. context_length: tokens that the model
    holds; a longer prompt is refused, without tokenizing it where its characters say so.
    tool_format: how the model writes calls of tools; None where its chat template has no tools, or a format that is not known.
    thinking_format: how it marks what it thinks before it answers; None where its chat template has no markers that are known.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        vocab_size: int,
        eos_ids: Iterable[int] = (),
        context_length: int | None = None,
    ) -> None:
        self._templates = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._encoder = SafeEncoder(self._backend, (*tool_calls.MARKERS, *thinking.MARKERS))
        self.tool_format, self.thinking_format, self.thinking_markers = self._formats()
        formats = (self.tool_format, self.thinking_format)
        self._decoder = TextDecoder(
            self._backend, [token for one in formats if one is not None for token in one.control]
        )
        self._before, self._after = self._encoder.frame()
        self._anchor = self._encoder.literal("a").ids
        self._context_length = context_length
        self._longest_token = max(map(len, self._backend.get_vocab()))
        self._texts: dict[int, str] = {}  # of each token that was asked for
        self.vocab_size = vocab_size  # padded rows beyond the tokenizer can be generated; they have no text
        self.eos_ids = frozenset(int(token_id) for token_id in eos_ids)

    @property
    def serialized(self) -> str:
        """The tokenizer in the JSON format of the library `tokenizers`."""
        return self._backend.to_str()

    def _formats(self) -> tuple[ToolFormat | None, ThinkingFormat | None, tuple[str, str] | None]:
        try:
            template = self._template(tools=True)
        except InvalidRequest:
            return None, None, None
        added = {token.content: token_id for token_id, token in self._backend.get_added_tokens_decoder().items()}
        special = frozenset(self._encoder.special.values())
        found = tool_calls.format_of(template, added, special), thinking.format_of(template, added, special)
        return *found, thinking_of(template)

    def _template(self, *, tools: bool) -> str:
        """Returns the chat template; the one for tools where the tokenizer has several. Raises InvalidRequest."""
        named = self._templates.chat_template
        if not named:
            raise InvalidRequest("this model has no chat template: send `prompt` as text", param="messages")
        try:
            return cast(str, self._templates.get_chat_template(tools=[{}] if tools else None))
        except ValueError:
            names = ", ".join(sorted(named))
            raise InvalidRequest(
                f"this model has the chat templates {names}, of which none is the default: send `prompt` as text",
                param="messages",
            ) from None

    def phase_rules(
        self, prompt: Sequence[int], last: ChatMessage | None = None, *, tools: bool = False, json: bool = False
    ) -> PhaseRules:
        """Returns what decides the phases of an answer to a prompt. last: its last message; None: no conversation,
        where the text counts from the last control token on that is no marker. tools: whether it may call some.
        json: whether it must be JSON."""
        form = self.tool_format if tools else None
        return self._begun(PhaseRules.of(self.thinking_markers, form, json=json), prompt, last)

    def _begun(self, rules: PhaseRules, prompt: Sequence[int], last: ChatMessage | None) -> PhaseRules:
        count = TAIL if last is not None else self._before_control(reversed(prompt), rules)
        return rules.after(last, "".join(map(self.token_text, prompt[max(len(prompt) - count, 0) :])))

    def _before_control(self, ids: Iterable[int], rules: PhaseRules) -> int:
        """Returns how many ids come before the first control token that is no marker."""
        control, special, markers = self._encoder.control_ids, self._encoder.special, rules.markers
        return sum(1 for _ in takewhile(lambda one: one not in control or special[one] in markers, ids))

    def conversation_phases(self, messages: tuple[ChatMessage, ...]) -> tuple[PhaseName | None, ...]:
        """Returns the phase of each token of encode(messages), which ends with an answer; None for the template's own
        behind it. Raises InvalidRequest without an answer, and where the template rewrites the prompt once it is
        answered."""
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise InvalidRequest(
                "phases need a conversation that ends with an answer to another message", param="phase"
            )
        ids, prompt = self.encode(messages), self.encode(messages[:-1])
        start = len(prompt)
        if ids[:start] != prompt:
            raise InvalidRequest(
                "the chat template writes the messages before the answer otherwise once they are answered: the phases of the "
                "answer are not known",
                param="phase",
            )
        form = PhaseRules.of(self.thinking_markers, self.tool_format, tools=False)  # which were offered is not known
        rules = self._begun(form, prompt, messages[-2])
        end = start + self._before_control(ids[start:], rules)
        found = PhaseTracker(rules, self.token_text).phases(ids, start, 0, end)
        return (*found, *[None] * (len(ids) - end))

    def token_texts(self) -> tuple[str, ...]:
        """Returns the text of every token. Takes some seconds for a large vocabulary: to be called in a thread."""
        return tuple(map(self.token_text, range(self.vocab_size)))

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        """Returns the ids of a text (with the tokens that the tokenizer adds), of messages by the chat template, or
        checked ids. most: tokens; by default the context's. Raises ContextLengthExceeded, and InvalidRequest: no
        chat template, a refused conversation, unknown ids, text that is not Unicode, nothing to encode."""
        most = self._context_length if most is None else most
        if isinstance(prompt, str):
            self._check_characters(len(prompt), most)
            ids = (*self._before, *self._encoder.literal(_checked_text(prompt), most).ids, *self._after)
        elif prompt and isinstance(prompt[0], ChatMessage):
            ids = self._encode_messages(prompt, most)[1].ids
        else:
            _check_length(len(prompt), most)
            ids = self._checked_ids(cast("tuple[int, ...]", prompt))
        return _continuable(ids)

    def _check_characters(self, characters: int, most: int | None) -> None:
        """Raises ContextLengthExceeded for a text that is too long whichever tokens it has."""
        if most is not None and characters > most * self._longest_token:
            raise ContextLengthExceeded(
                f"the prompt has {characters} characters, which is more than {most} tokens; at most {most} fit",
                param="prompt",
            )

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """Renders a conversation that contains no lone surrogate, to be answered unless the last message is an answer, which does not ask
        for another one. Raises InvalidRequest where the template refuses it."""
        if not messages:
            raise InvalidRequest("a conversation needs at least one message", param="messages")
        with_tools = [message for message in messages if isinstance(message, ToolMessage)]
        template, form = self._template(tools=bool(with_tools)), self.thinking_format
        first = messages[0] if isinstance(messages[0], ToolMessage) else ToolMessage("user", "")
        switches = {form.switch: first.thinking} if form is not None and first.thinking is not None else {}
        last, continues = messages[-1], isinstance(messages[-1], ContinuedMessage)
        try:
            text = self._templates.apply_chat_template(
                list(map(_row, messages)),
                tools=list(first.tools) or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=last.role != "assistant" or last.asks,
                continue_final_message=continues,
                **switches,
            )
        except TypeError as error:
            if not any(message.calls for message in with_tools):
                raise
            raise InvalidRequest(
                f"the chat template does not read the arguments of these calls: {error}", param="messages"
            ) from error
        except TemplateError as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from error
        except ValueError as error:
            if not continues:
                raise
            raise InvalidRequest(
                "the chat template does not show the last message as it is, so that it cannot be continued",
                param="continue_final_message",
            ) from error
        return cast(str, text)

    def response_span(self, messages: Sequence[ChatMessage]) -> Span:
        """Returns the half-open span of tokens in encode(messages) with the content of the last assistant message.
        Raises InvalidRequest when there is none, or when the template does not contain it as one text."""
        answers = [i for i, message in enumerate(messages) if message.role == "assistant" and message.content.strip()]
        if not answers:
            raise InvalidRequest("there is no assistant message with content to read", param="messages")
        text, encoded = self._encode_messages(messages, self._context_length)
        marker = _unused_characters([text], 1)[0]
        emptied = [replace(m, content=marker) if i == answers[-1] else m for i, m in enumerate(messages)]
        before, *after = self.render(emptied).split(marker)
        if len(after) != 1 or not (text.startswith(before) and text.endswith(after[0])):
            raise InvalidRequest("the chat template does not show the assistant message as one text", param="messages")
        start, end = len(before), len(text) - len(after[0])
        inside = [i for i, span in enumerate(encoded.spans) if span[0] < end and span[1] > start]
        if not inside:
            raise InvalidRequest("the chat template leaves the assistant message out", param="messages")
        return inside[0], inside[-1] + 1

    def encode_with_roles(self, messages: Sequence[ChatMessage]) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        """Returns encode(messages) and the role of the message whose content each token is part of; None for the
        template's own. Raises InvalidRequest where the template does not show each message as one text."""
        text, encoded = self._encode_messages(messages, self._context_length)
        marker = _unused_characters([text], 1)[0]
        shown = [one for one in messages if _has_content(one)]
        emptied = [replace(one, content=marker * MARK) if _has_content(one) else one for one in messages]
        spans = _message_spans(text, [one.content for one in shown], self.render(emptied), marker)
        return _continuable(encoded.ids), _roles_of_tokens(encoded.spans, spans, [one.role for one in shown])

    def control_strings(self, text: str) -> tuple[str, ...]:
        """Returns the strings of control tokens (`<|im_end|>`) in a text, which are read as plain characters."""
        return self._encoder.control_strings(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of ids without control tokens. Raises InvalidRequest for unknown ids."""
        # `decode` would hold the interpreter's lock
        (text,) = self._backend.decode_batch([list(self._checked_ids(token_ids))], skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """Returns one token's own text with its leading space; not to be joined, as it may be part of a character."""
        text = self._texts.get(token_id)
        if text is None:
            self._checked_ids((token_id,))
            text = self._encoder.special.get(token_id)
        if text is None:
            # Decoded after another token, because some tokenizers drop the first space of a text.
            text = self.decode((*self._anchor, token_id))[len(self.decode(self._anchor)) :]
        self._texts[token_id] = text
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that one token adds to a text, which may be part of a character; none for a control token."""
        text = self.token_text(token_id)
        if token_id in self._encoder.special:
            return b""
        piece = (self._backend.id_to_token(token_id) if BROKEN in text else None) or ""
        if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
            return bytes.fromhex(byte[1])
        return bytes(map(_BYTES.__getitem__, piece)) if piece and _BYTES.keys() >= set(piece) else text.encode()

    def decode_stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """Returns a new stream of text. With the prompt's ids, a first word keeps its space in every tokenizer."""
        return TextStream(self._decoder, prompt[-CONTEXT_LENGTH:])

    def _encode_messages(self, messages: Sequence[ChatMessage], most: int | None) -> tuple[str, Encoded]:
        """Returns the rendered text and its tokens, whose spans refer to that text. Raises what `encode` raises."""
        self._check_characters(sum(len(message.content) for message in messages), most)
        written = [_checked_text(message.written) for message in messages]
        marks = self._encoder.marks(written)
        if marks:  # markers of calls and results too, except in what the application and the model say
            control, every = (partial(self._encoder.marked, marks=marks, markers=markers) for markers in (False, True))
            said = ("system", "assistant")
            messages = [one.changed(control if one.role in said else every, every) for one in messages]
        text = self.render(messages)
        tools = any(isinstance(message, ToolMessage) for message in messages)
        # without its mark, what the template escapes would be read as a control token
        if tools and any(json.dumps(mark)[1:-1] in text for mark in marks):
            raise InvalidRequest("the chat template escapes what the tools contain of control strings", param="tools")
        shown = text.translate(dict.fromkeys(map(ord, marks)))
        self._check_characters(len(shown), most)  # tools take more characters than the caller wrote
        return shown, self._encoder.rendered(text, marks, most)

    def _checked_ids(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        ids = tuple(token_ids)
        # as set, min and max: a long prompt is checked in microseconds, also where ids pass through here twice
        if ids and (set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= self.vocab_size):
            wrong = next(one for one in ids if type(one) is not int or not 0 <= one < self.vocab_size)
            raise InvalidRequest(
                f"token ids are integers from 0 to {self.vocab_size - 1}, got {str(wrong)[:40]}", param="prompt"
            )
        return ids


def _has_content(message: ChatMessage) -> bool:
    """Whether a template shows the content: where a message calls tools, it may have none."""
    return bool(message.content) or not (isinstance(message, ToolMessage) and message.calls)


def _row(message: ChatMessage) -> dict[str, Any]:
    """Returns a message as chat templates read it."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message, ToolMessage):
        if message.calls:
            row["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.calls
            ]
        others = {"tool_call_id": message.call_id, "name": message.name, "reasoning_content": message.reasoning}
        row |= {key: value for key, value in others.items() if value}
    return row


def _continuable(ids: tuple[int, ...]) -> tuple[int, ...]:
    if not ids:
        raise InvalidRequest("the prompt is empty: there is no token to continue from", param="prompt")
    return ids


def _checked_text(text: str) -> str:
    """Raises InvalidRequest for a lone surrogate, which is legal in JSON but which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the text is not valid Unicode at character {error.start}", param="prompt") from None
    return text


def _message_spans(text: str, contents: Sequence[str], marked: str, marker: str) -> list[Span]:
    """Returns the half-open range of characters in `text` of each message, which a template may trim. marked: rendered
    with markers as contents. Raises InvalidRequest where contents are not shown as one text."""
    refusal = InvalidRequest("the chat template does not show each message as one text", param="messages")
    pieces = marked.split(marker * MARK)
    if len(pieces) != len(contents) + 1 or not text.startswith(pieces[0]):
        raise refusal
    spans: list[Span] = []
    at = len(pieces[0])
    for content, following in zip(contents, pieces[1:], strict=True):
        shown = next((one for one in (content, content.strip()) if text.startswith(one + following, at)), None)
        if shown is None:
            raise refusal
        spans.append((at, at + len(shown)))
        at += len(shown) + len(following)
    if at != len(text):
        raise refusal
    return spans


def _roles_of_tokens(tokens: Sequence[Span], messages: Sequence[Span], roles: Sequence[str]) -> tuple[str | None, ...]:
    """Returns for each token the role of the message that it has a character of, or None. All ranges are in order."""
    ends = [end for _, end in messages]
    found: list[str | None] = []
    for start, end in tokens:
        number = bisect_right(ends, start)  # of the first message that ends after the token starts
        inside = number < len(messages) and end > messages[number][0] and end > start
        found.append(roles[number] if inside else None)
    return tuple(found)
