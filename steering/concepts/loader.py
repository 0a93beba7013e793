"""Reads contrastive pairs and prompts from JSON lines: the starter concepts, and a caller's own file."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from steering.concepts import CONCEPTS, RENAMED
from steering.concepts.described import all_concepts, described
from steering.errors import ConceptNotFound, InternalError, InvalidRequest
from steering.pairs import ChatMessage, ContrastivePair, PairSet
from steering.registry import unknown_name
from steering.strict_json import load_json

PAIR_KEYS = {"positive": True, "negative": True, "id": False, "topic": False, "prompt": False}
PROMPT_KEYS = {"prompt": True, "id": False, "topic": False}
"""The keys a line may have, and whether it must."""
SIDES = ("positive", "negative")
_Key: TypeAlias = tuple[str | None, ...]
"""What kind of thing it is, then its parts; a line without it has None as the last."""


@cache
def load_concept(name: str) -> PairSet:
    """The pairs of a starter concept. Raises ConceptNotFound naming those that exist."""
    _check_known(name)
    return read_pairs(_lines(f"{name}.jsonl"), source=f"{name}.jsonl")


@cache
def load_evaluation_prompts(name: str) -> tuple[str, ...]:
    """Returns prompts on which a vector of the concept is tried out, none of its pairs. Raises ConceptNotFound."""
    _check_known(name)
    return read_prompts(_lines(f"{name}.prompts.jsonl"), source=f"{name}.prompts.jsonl")


@cache
def load_report_prompts(name: str) -> tuple[str, ...]:
    """Returns the prompts of a deployment report, on which nothing was chosen. Raises ConceptNotFound."""
    _check_known(name)
    return read_prompts(_lines(f"{name}.report.jsonl"), source=f"{name}.report.jsonl")


@cache
def load_neutral() -> tuple[str, ...]:
    """Prompts that take no side, for typical norms, damage and the evaluations of vectors."""
    return read_prompts(_lines("neutral.jsonl"), source="neutral.jsonl")


@cache
def load_instructed() -> tuple[str, ...]:
    """Prompts that take no side, answered under an instruction where a vector is made of it. No evaluation takes them by default."""
    return read_prompts(_lines("instructed.neutral.jsonl"), source="instructed.neutral.jsonl")


@cache
def load_neutral_texts() -> tuple[str, ...]:
    """Statements that take no side, against which texts are compared."""
    return read_prompts(_lines("texts.neutral.jsonl"), source="texts.neutral.jsonl")


def read_pairs(lines: Iterable[str], source: str = "pairs") -> PairSet:
    """Reads JSON lines `{"positive", "negative", "prompt"?, "topic"?, "id"?}`; blank lines are passed over. With a
    prompt a text is a conversation. A pair without a topic is a topic of its own. Raises InvalidRequest with the
    number of the line for anything else, for two equal sides, and for an id or a pair seen before."""
    pairs: list[ContrastivePair] = []
    seen: dict[_Key, int] = {}
    for number, line in _records(lines, PAIR_KEYS, source):
        prompt = line.get("prompt")
        if line["positive"] == line["negative"]:
            raise InvalidRequest(f"{source}, line {number}: positive and negative are the same text", param="pairs")
        _refuse_repeat(("pair", prompt or "", line["positive"], line["negative"]), seen, number, source)
        _refuse_repeat(("id", line.get("id")), seen, number, source)
        positive, negative = (
            line[side] if prompt is None else (ChatMessage("user", prompt), ChatMessage("assistant", line[side]))
            for side in SIDES
        )
        pairs.append(ContrastivePair(positive, negative, line.get("topic")))
    if not pairs:
        raise InvalidRequest(f"{source}: no pairs found", param="pairs")
    return PairSet.of(pairs)


def read_prompts(lines: Iterable[str], source: str = "prompts") -> tuple[str, ...]:
    """JSON lines `{"prompt", "topic"?, "id"?}` -> the prompts. Raises InvalidRequest with the number of the line."""
    seen: dict[_Key, int] = {}
    prompts = []
    for number, line in _records(lines, PROMPT_KEYS, source):
        _refuse_repeat(("prompt", line["prompt"]), seen, number, source)
        _refuse_repeat(("id", line.get("id")), seen, number, source)
        prompts.append(line["prompt"])
    return tuple(prompts)


def _check_known(name: str) -> None:
    if name in RENAMED:
        raise ConceptNotFound(f"concept {name!r} is now named {RENAMED[name]!r}", param="concept")
    if name in described():
        raise ConceptNotFound(
            f"concept {name!r} is one in words, without pairs; here use its vector, or one of {', '.join(CONCEPTS)}",
            param="concept",
        )
    if name not in CONCEPTS:
        raise ConceptNotFound(unknown_name("concept", name, list(all_concepts()), "concept"), param="concept")


def _lines(file: str) -> list[str]:
    """The lines of a file of ours. That it is missing is a defect of the package and not of the request."""
    try:
        return (files("steering.concepts") / "data" / file).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InternalError(f"the package lacks its concept file {file}") from None


def _refuse_repeat(key: _Key, seen: dict[_Key, int], number: int, source: str) -> None:
    if key[-1] is None:
        return
    if key in seen:
        raise InvalidRequest(
            f"{source}, line {number}: the same {key[0]} as on line {seen[key]} ({key[-1][:60]!r})", param="pairs"
        )
    seen[key] = number


def _records(lines: Iterable[str], keys: Mapping[str, bool], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line that is not blank, as (number from 1, object with string values under known keys)."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = load_json(line, f"{source}, line {number}: the line", param="pairs")
            if fault := _fault(record, keys):
                raise InvalidRequest(f"{source}, line {number}: {fault}", param="pairs")
            yield number, record


def _fault(record: Any, keys: Mapping[str, bool]) -> str | None:
    """What is wrong with a record; None where all is right."""
    if not isinstance(record, dict):
        return f"expected an object with {', '.join(keys)}"
    for key in record:
        if key not in keys:
            return f"unknown key {key[:40]!r}; known: {', '.join(keys)}"
    for key, required in keys.items():
        value = record.get(key)
        left_out = value is None and not required
        if not left_out and not (isinstance(value, str) and value.strip()):
            return f"{key!r} must be a text that is not empty"
    return None
