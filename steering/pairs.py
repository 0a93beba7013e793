"""ContrastivePair and PairSet: what a concept is shown by. Split by topic, never by row."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

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
    """The texts of one concept. When `paired` is False, positives and negatives are two heaps of any two sizes."""

    positive: tuple[Text, ...]
    negative: tuple[Text, ...]
    topics: tuple[str, ...] = field(default=())
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
        """From pairs; a pair without a topic is a topic of its own."""
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
    """Indices into positives and negatives: what fits the direction, and what only measures it."""

    fit_positive: tuple[int, ...]
    fit_negative: tuple[int, ...]
    held_positive: tuple[int, ...]
    held_negative: tuple[int, ...]


def _divide(groups: Sequence[str], share: float, rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Whole groups move to the held-out side until it has `share` of the rows; at least one group fits."""
    names = sorted(set(groups))
    rng.shuffle(names)
    wanted, held = share * len(groups), set[str]()
    count = 0
    for name in names[:-1]:
        if count >= wanted:
            break
        held.add(name)
        count += groups.count(name)
    fit = tuple(i for i, group in enumerate(groups) if group not in held)
    return fit, tuple(i for i, group in enumerate(groups) if group in held)


def split(pairs: PairSet, holdout: float, seed: int) -> Split:
    """Divide by topic. `holdout` is the share held out, 0 <= holdout < 1; 0 holds out nothing."""
    if not 0.0 <= holdout < 1.0:
        raise InvalidRequest(f"holdout must be at least 0 and below 1, got {holdout}", param="holdout")
    rng = random.Random(seed)  # noqa: S311 - a reproducible split, no secret
    if pairs.paired:
        groups = pairs.topics or tuple(f"#{i}" for i in range(len(pairs)))
        fit, held = _divide(groups, holdout, rng)
        return Split(fit, fit, held, held)
    fit_positive, held_positive = _divide([f"#{i}" for i in range(len(pairs.positive))], holdout, rng)
    fit_negative, held_negative = _divide([f"#{i}" for i in range(len(pairs.negative))], holdout, rng)
    return Split(fit_positive, fit_negative, held_positive, held_negative)


def dataset_digest(pairs: PairSet) -> str:
    """SHA-256 over texts and topics in their order, as canonical JSON."""

    def plain(text: Text) -> Any:
        return text if isinstance(text, str) else [asdict(message) for message in text]

    content = [[plain(t) for t in pairs.positive], [plain(t) for t in pairs.negative], list(pairs.topics), pairs.paired]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
