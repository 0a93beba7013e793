"""Defines ContrastivePair and PairSet, the examples of a concept, and their splits by topic, never by row."""

import hashlib
import json
import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Literal, TypeAlias

from steering.errors import InvalidRequest

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: Role
    content: str


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
    """The texts of one concept. When `paired` is False, positives and negatives are separate lists of any sizes."""

    positive: tuple[Text, ...]
    negative: tuple[Text, ...]
    topics: tuple[str, ...] = ()
    paired: bool = True

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            raise InvalidRequest("a concept needs at least one positive and one negative text", param="pairs")
        if self.paired and len(self.positive) != len(self.negative):
            raise InvalidRequest(
                f"pairs need as many positives as negatives, got {len(self.positive)} and {len(self.negative)}",
                param="pairs",
            )
        if self.topics and len(self.topics) != len(self.positive):
            raise InvalidRequest("topics must name one topic for each pair", param="topics")

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
    A pair belongs to its topic, and pairs that share a text to one group: the text would be both fitted and held out. Of
    texts that are not paired, equal ones of a list are a group."""
    if not pairs.paired:
        positive, negative = (
            _joined(_numbers(side), [(text,) for text in side]) for side in (pairs.positive, pairs.negative)
        )
        return positive, negative
    topics = pairs.topics or _numbers(pairs.positive)
    keys = [(("topic", topic), *pair) for topic, pair in zip(topics, pairs, strict=True)]
    found = _joined(topics, keys)
    return found, found


def _numbers(texts: Sequence[Text]) -> tuple[str, ...]:
    return tuple(f"#{i}" for i in range(len(texts)))


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


def _groups(pairs: PairSet) -> tuple[tuple[str, ...], ...]:
    found = groups_of(pairs)
    return found[:1] if pairs.paired else found


def _partition(groups: Sequence[str], parts: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Deals whole groups to `parts` parts of about equal size; fewer parts where there are fewer groups."""
    names = sorted(set(groups))
    rng.shuffle(names)
    members: list[list[int]] = [[] for _ in range(min(parts, len(names)))]
    for name in names:
        smallest = min(members, key=len)
        smallest.extend(index for index, group in enumerate(groups) if group == name)
    return [tuple(sorted(part)) for part in members]


def _check_holdout(holdout: float) -> None:
    if not 0.0 <= holdout < 1.0:
        raise InvalidRequest(f"holdout must be at least 0 and below 1, got {holdout}", param="holdout")


def folds(pairs: PairSet, holdout: float, seed: int) -> tuple[Split, ...]:
    """Partitions the groups (topics, see `groups_of`) into folds of about the share `holdout`; each Split holds one fold out.
    At least three folds, so that a layer can be chosen inside a training part, or two where there are only two topics.
    None for holdout 0 or a single topic."""
    _check_holdout(holdout)
    if holdout == 0.0:
        return ()
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    groups = _groups(pairs)
    count = min(max(3, round(1.0 / holdout)), *(len(set(one)) for one in groups))
    parts = [_partition(one, count, rng) for one in groups]
    positive, negative = parts[0], parts[-1]
    if len(positive) < 2:
        return ()
    return tuple(
        Split(indices_without(len(pairs.positive), above), indices_without(len(pairs.negative), below), above, below)
        for above, below in zip(positive, negative, strict=True)
    )


def indices_without(count: int, *held: Sequence[int]) -> tuple[int, ...]:
    """Returns the indices below `count` that none of `held` contains."""
    left_out = set(chain(*held))
    return tuple(index for index in range(count) if index not in left_out)


def split(pairs: PairSet, holdout: float, seed: int) -> Split:
    """Holds out whole topics once, at least the share `holdout`; at least one topic is fitted."""
    _check_holdout(holdout)
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    parts = [_divide(one, holdout, rng) for one in _groups(pairs)]
    (fit_positive, held_positive), (fit_negative, held_negative) = parts[0], parts[-1]
    return Split(fit_positive, fit_negative, held_positive, held_negative)


def _divide(groups: Sequence[str], share: float, rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Moves whole groups to the held-out part until it has `share` of the rows; at least one group is fitted."""
    names = sorted(set(groups))
    rng.shuffle(names)
    wanted, held, count = share * len(groups), set[str](), 0
    for name in names[:-1]:
        if count >= wanted:
            break
        held.add(name)
        count += groups.count(name)
    held_out = tuple(i for i, group in enumerate(groups) if group in held)
    return indices_without(len(groups), held_out), held_out


def dataset_digest(pairs: PairSet) -> str:
    """Returns the SHA-256 over texts and topics in their order, as canonical JSON."""
    content = [pairs.positive, pairs.negative, pairs.topics, pairs.paired]
    return hashlib.sha256(json.dumps(content, default=asdict, sort_keys=True).encode()).hexdigest()
