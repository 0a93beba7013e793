"""Defines ContrastivePair and PairSet, the examples of a concept, and their splits by topic, never by row."""

import hashlib
import json
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, Literal, Self, TypeAlias

from steering.errors import InvalidRequest

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
MOST_FOLDS = 10


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation. asks: whether another message of the assistant follows, where it is the last one and the assistant's."""

    role: Role
    content: str
    asks: bool = field(default=False, kw_only=True)

    @property
    def written(self) -> str:
        """All that a caller wrote in it."""
        return self.content

    def changed(self, content: Callable[[str], str], other: Callable[[str], str]) -> Self:  # noqa: ARG002
        """Returns the message with its content changed, and every other text that a caller wrote."""
        return replace(self, content=content(self.content))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function by the model. arguments: a JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolMessage(ChatMessage):
    """A message of a conversation with tools, or of one in which the model thinks before it answers.

    tools: the functions that the model may call, as JSON objects with `type` and `function`; those of the first message count.
    calls: what an assistant message calls. call_id, name: which call a message of role `tool` answers, and of which function.
    reasoning: what the model thought before an assistant message.
    thinking: whether the model is to think before it answers, where its template can be told; that of the first message counts.
    """

    tools: tuple[dict[str, Any], ...] = ()
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    reasoning: str = ""
    thinking: bool | None = None

    @property
    def written(self) -> str:
        """See ChatMessage.written."""
        calls = [[call.id, call.name, call.arguments] for call in self.calls]
        others = [self.tools, calls, self.call_id, self.name, self.reasoning]
        return self.content + json.dumps(others, ensure_ascii=False)

    def changed(self, content: Callable[[str], str], other: Callable[[str], str]) -> Self:
        """See ChatMessage.changed."""

        def each(value: Any) -> Any:
            if isinstance(value, str):
                return other(value)
            if isinstance(value, dict):
                return {each(key): each(item) for key, item in value.items()}
            if isinstance(value, ToolCall):
                return ToolCall(each(value.id), each(value.name), each(value.arguments))
            return type(value)(map(each, value)) if isinstance(value, list | tuple) else value

        others = {name: each(getattr(self, name)) for name in ("tools", "calls", "call_id", "name", "reasoning")}
        return replace(self, content=content(self.content), **others)


@dataclass(frozen=True, slots=True)
class ContinuedMessage(ChatMessage):
    """The last message of a conversation, the assistant's, where the answer continues it: its template is left open."""


def continued(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Returns the conversation with its last message to be continued. Raises InvalidRequest for one that is not the assistant's, or empty."""
    last = messages[-1]
    if last.role != "assistant" or not last.content.strip():
        what = "is empty" if last.role == "assistant" else f"is of role {last.role!r}"
        raise InvalidRequest(
            f"'continue_final_message' needs a last message of the assistant with content; it {what}",
            param="continue_final_message",
        )
    return (*messages[:-1], ContinuedMessage(last.role, last.content))


def asking(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Returns the conversation to be answered by a new message, also where its last message is the assistant's."""
    return (*messages[:-1], replace(messages[-1], asks=True)) if messages[-1].role == "assistant" else messages


Text: TypeAlias = str | tuple[ChatMessage, ...]
"""A plain text, or a conversation rendered by the model's chat template."""


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """A positive and a negative text that differ in the concept. `topic` groups pairs that must be split together."""

    positive: Text
    negative: Text
    topic: str | None = None


@dataclass(frozen=True, slots=True)
class PairSet:
    """The texts of one concept. When `paired` is False, positives and negatives are separate lists of any sizes.
    topics: of each pair, or of each positive text of a list. negative_topics: of each negative text of a list."""

    positive: tuple[Text, ...]
    negative: tuple[Text, ...]
    topics: tuple[str, ...] = ()
    paired: bool = True
    negative_topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            raise InvalidRequest("a concept needs at least one positive and one negative text", param="pairs")
        if self.paired and len(self.positive) != len(self.negative):
            raise InvalidRequest(
                f"pairs need as many positives as negatives, got {len(self.positive)} and {len(self.negative)}",
                param="pairs",
            )
        if self.paired and self.topics and len(self.topics) != len(self.positive):
            raise InvalidRequest("topics must name one topic for each pair", param="topics")
        if not self.paired and (self.topics or self.negative_topics):
            sides = ("positive", self.positive, self.topics), ("negative", self.negative, self.negative_topics)
            for side, texts, topics in sides:
                if len(topics) != len(texts):
                    raise InvalidRequest(
                        f"lists with topics need one for each text of both: got {len(topics)} for {len(texts)} {side} texts",
                        param=f"{side}_topics",
                    )

    @classmethod
    def of(cls, pairs: Sequence[ContrastivePair]) -> "PairSet":
        """Builds a set from pairs; a pair without a topic is its own topic."""
        return cls(
            positive=tuple(pair.positive for pair in pairs),
            negative=tuple(pair.negative for pair in pairs),
            topics=tuple(pair.topic if pair.topic is not None else f"#{i}" for i, pair in enumerate(pairs)),
        )

    def __len__(self) -> int:
        return len(self.positive)

    def __iter__(self) -> Iterator[tuple[Text, Text]]:
        return iter(zip(self.positive, self.negative, strict=False))


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into positives and negatives: the part that fits a direction and the part that is held out to measure it."""

    fit_positive: tuple[int, ...]
    fit_negative: tuple[int, ...]
    held_positive: tuple[int, ...]
    held_negative: tuple[int, ...]


def groups_of(pairs: PairSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names the group of each positive and of each negative, which is held out as a whole.
    A pair belongs to its topic, and pairs that share a text to one group: the text would be both fitted and held out. A text of a
    list belongs to its topic, in both lists, and to one group with equal texts of its list."""
    if not pairs.paired:
        sides = (("+", pairs.positive, pairs.topics), ("-", pairs.negative, pairs.negative_topics))
        rows = [
            (name, (("topic", name), (sign, text)))
            for sign, texts, topics in sides
            for name, text in zip(topics or [f"{sign}{i}" for i in range(len(texts))], texts, strict=True)
        ]
        found = _joined([name for name, _ in rows], [keys for _, keys in rows])
        return found[: len(pairs.positive)], found[len(pairs.positive) :]
    topics = pairs.topics or tuple(f"#{i}" for i in range(len(pairs)))
    keys = [(("topic", topic), *pair) for topic, pair in zip(topics, pairs, strict=True)]
    found = _joined(topics, keys)
    return found, found


def _joined(names: Sequence[str], keys: Sequence[Sequence[Hashable]]) -> tuple[str, ...]:
    """Returns for each row the name of the first row that is connected with it by equal keys."""
    before, first = list(range(len(names))), dict[Hashable, int]()

    def root(row: int) -> int:
        while before[row] != row:
            before[row] = row = before[before[row]]
        return row

    for row, own in enumerate(keys):
        for key in own:
            low, high = sorted((root(row), root(first.setdefault(key, row))))
            before[high] = low
    return tuple(names[root(row)] for row in range(len(names)))


def _partition(
    groups: tuple[Sequence[str], Sequence[str]], parts: int, rng: random.Random
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Deals groups to parts of about equal sizes, as indices of both sides; groups of the positives first."""
    members: dict[str, tuple[list[int], list[int]]] = {}
    for side, of_side in enumerate(groups):
        for index, name in enumerate(of_side):
            members.setdefault(name, ([], []))[side].append(index)
    dealt: list[tuple[list[int], list[int]]] = [([], []) for _ in range(parts)]
    dealt_names = set[str]()
    for side in range(2):
        names = sorted(set(groups[side]) - dealt_names)
        dealt_names.update(names)
        rng.shuffle(names)
        names.sort(key=lambda name: not all(members[name]))  # so that no part gets all groups that both sides have
        for name in names:
            other = 1 - side if members[name][1 - side] else side
            smallest = min(dealt, key=lambda part: (len(part[side]), len(part[other])))
            for into, found in zip(smallest, members[name], strict=True):
                into.extend(found)
    return [(tuple(sorted(positive)), tuple(sorted(negative))) for positive, negative in dealt]


def _check_holdout(holdout: float) -> None:
    if not 0.0 <= holdout < 1.0:
        raise InvalidRequest(f"holdout must be at least 0 and below 1, got {holdout}", param="holdout")


def folds(pairs: PairSet, holdout: float, seed: int) -> tuple[Split, ...]:
    """Partitions the groups (topics, see `groups_of`) into folds of about the share `holdout`; each Split holds one fold out.
    At least three folds, so that a layer can be chosen inside a training part, or two where there are only two topics, and at most
    MOST_FOLDS, since a direction is fitted for every two of them.
    None for holdout 0 or a single topic."""
    _check_holdout(holdout)
    if holdout == 0.0:
        return ()
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    groups = groups_of(pairs)
    count = min(max(3, round(1.0 / holdout)), MOST_FOLDS, *(len(set(one)) for one in groups))
    if count < 2:
        return ()
    return tuple(
        Split(indices_without(len(pairs.positive), above), indices_without(len(pairs.negative), below), above, below)
        for above, below in _partition(groups, count, rng)
    )


def indices_without(count: int, *held: Sequence[int]) -> tuple[int, ...]:
    """Returns the indices below `count` that none of `held` contains."""
    left_out = set(chain(*held))
    return tuple(index for index in range(count) if index not in left_out)


def split(pairs: PairSet, holdout: float, seed: int) -> Split:
    """Holds out whole topics of pairs once, at least the share `holdout`; at least one topic is fitted."""
    _check_holdout(holdout)
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    groups, _ = groups_of(pairs)
    names = sorted(set(groups))
    rng.shuffle(names)
    wanted, held, count = holdout * len(groups), set[str](), 0
    for name in names[:-1]:
        if count >= wanted:
            break
        held.add(name)
        count += groups.count(name)
    held_out = tuple(i for i, group in enumerate(groups) if group in held)
    fitted = indices_without(len(groups), held_out)
    return Split(fitted, fitted, held_out, held_out)


def dataset_digest(pairs: PairSet) -> str:
    """Returns the SHA-256 over texts and topics in their order, as canonical JSON."""
    content = [pairs.positive, pairs.negative, pairs.topics, pairs.paired]
    content += [pairs.negative_topics] if pairs.negative_topics else []
    return hashlib.sha256(json.dumps(content, default=_written_form, sort_keys=True).encode()).hexdigest()


def _written_form(message: ChatMessage) -> dict[str, Any]:
    """Returns what a digest has of a message: what was written, not how it is answered."""
    return {name: value for name, value in asdict(message).items() if name != "asks"}
