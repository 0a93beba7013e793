"""`steer screen`: projects the examples of a training file on vectors, and finds those that would teach a trait.

Examples are read by POST /v1/explain, some at a time: of a conversation the assistant's turns (persona vectors, arXiv 2507.21509).
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypeAlias

import rich.progress
from typer import BadParameter, Option

from app.cli.commands import command, file_argument, output_option
from app.cli.tables import text_table
from app.cli.terminal import beside, shown, stderr
from steering.client import ApiError, Client
from steering.errors import InvalidRequest
from steering.schemas.reading import ExplainAnswer
from steering.strict_json import load_json

AT_ONCE = 32
"""Examples of one request, at most."""
CHARACTERS = 60_000
"""Characters of one request, unless one example has more."""
SHOWN = 5
"""Examples that are printed for a vector."""
ASKED = ("prompt", "instruction", "question", "input")
ANSWERED = ("completion", "response", "output", "answer", "chosen")
ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
"""Roles by other names."""
RETURNED = ("tool", "function")
"""Roles of what tools returned, which is left out."""
Example: TypeAlias = "str | list[dict[str, str]]"


@command
def screen(
    client: Client,
    data: Annotated[Path, file_argument("Training examples, one JSON object or text a line.")],
    vector: Annotated[list[str], Option(help="A vector to project on; repeatable. The first one sorts.")],
    out: Annotated[Path, output_option("File to write: a line per example, sorted.", "--out", "-o")],
    threshold: Annotated[float, "Examples at or above it are counted; below zero, those at or below it."] = 2.0,
    by: Annotated[
        Literal["z", "score"], "What is sorted and counted: z against neutral text, or natural scales."
    ] = "z",
) -> None:
    """Project the examples of a training file on vectors: sorted, with the share beyond a threshold."""
    if len({name.partition("@")[0] for name in vector}) != len(vector):
        raise BadParameter("each vector once", param_hint="--vector")
    scores, numbers, failed = [array("d") for _ in range(2 * len(vector))], array("q"), dict[int, str]()
    with rich.progress.open(data, "rb", description="screening", console=stderr, transient=True) as lines:
        for part in _parts(lines, failed):
            for number, found in _read(client, part, vector):
                if isinstance(found, str):
                    failed[number] = found
                    continue
                numbers.append(number)
                for column, value in zip(scores, found, strict=True):
                    column.append(value)
    with out.open("w", encoding="utf-8") as file:
        for index in _order(scores[0 if by == "z" else 1], threshold):
            values = [None if isnan(column[index]) else round(column[index], 4) for column in scores]
            z, score = (dict(zip(vector, values[kind::2], strict=True)) for kind in (0, 1))
            file.write(json.dumps({"line": numbers[index], "z": z, "score": score}) + "\n")
        for number, message in sorted(failed.items()):
            file.write(json.dumps({"line": number, "error": message}) + "\n")
    beside(out).print(_summary(vector, scores[0 if by == "z" else 1 :: 2], numbers, threshold, by))
    stderr.print(shown(f"wrote {out}: {len(numbers)} examples"))
    if failed:
        stderr.print(shown(f"{len(failed)} examples could not be read; their lines have an error", "yellow"))


def _order(column: "array[float]", threshold: float) -> list[int]:
    """Returns the places of the examples, those that lean most first, and last those of which it is not known."""
    sign = -1 if threshold >= 0 else 1
    return sorted(range(len(column)), key=lambda index: (isnan(column[index]), sign * column[index]))


def _summary(
    vectors: Sequence[str], columns: Sequence["array[float]"], numbers: "array[int]", threshold: float, by: str
) -> Any:
    sign = "at least" if threshold >= 0 else "at most"
    rows = []
    for name, column in zip(vectors, columns, strict=True):
        beyond = sum(value >= threshold if threshold >= 0 else value <= threshold for value in column)
        most = ", ".join(f"{numbers[index]} ({column[index]:+.1f})" for index in _order(column, threshold)[:SHOWN])
        known = [value for value in column if not isnan(value)]
        mean = f"{fmean(known):+.2f}" if known else ""
        rows.append([name, mean, f"{beyond} of {len(column)} ({beyond / max(len(column), 1):.1%})", most])
    return text_table(("vector", f"mean {by}", f"{sign} {threshold:g}", f"lines that lean most ({by})"), rows)


def _parts(lines: Any, failed: dict[int, str]) -> Iterator[list[tuple[int, Example]]]:
    """Yields examples with their line numbers, as many as a request takes, conversations and plain texts apart. failed: gets why a line
    is no example, by its number."""
    held: dict[bool, list[tuple[int, Example]]] = {False: [], True: []}
    size = {False: 0, True: 0}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = example_of(load_json(line, "the line"))
        except InvalidRequest as error:
            failed[number] = error.message
            continue
        kind = isinstance(found, list)
        length = sum(len(one["content"]) for one in found) if isinstance(found, list) else len(found)
        if held[kind] and (len(held[kind]) == AT_ONCE or size[kind] + length > CHARACTERS):
            yield held[kind]
            held[kind], size[kind] = [], 0
        held[kind].append((number, found))
        size[kind] += length
    yield from (part for part in held.values() if part)


def example_of(value: Any) -> Example:
    """Returns an example as the API takes it: a text, or the messages of a conversation. Raises InvalidRequest naming the field that
    cannot be read, or the keys that are known."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict):
        for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
            if value.get(key):
                return _conversation(value[key], key, role, content)
        asked = [value[key] for key in ASKED if isinstance(value.get(key), str) and value[key]]
        answer = next((value[key] for key in ANSWERED if isinstance(value.get(key), str) and value[key]), None)
        if asked and answer is not None:
            return [{"role": "user", "content": "\n\n".join(asked)}, {"role": "assistant", "content": answer}]
        if isinstance(value.get("text"), str) and value["text"]:
            return str(value["text"])
        empty = [key for key in ("text", *ANSWERED, *ASKED) if value.get(key) == ""]
        if empty:
            raise InvalidRequest(f"{empty[0]} is empty")
    raise InvalidRequest(
        f"expected a text, or an object with `messages`, `conversations`, `text`, or one of {', '.join(ASKED)} with one of "
        f"{', '.join(ANSWERED)}"
    )


def _conversation(turns: Any, key: str, role: str, content: str) -> list[dict[str, str]]:
    """Returns messages, without calls that have no text and what tools returned. key, role, content: the names of the fields."""
    messages = []
    for index, turn in enumerate(turns if isinstance(turns, list) else [turns]):
        fields = turn if isinstance(turn, dict) else {}
        name = fields.get(role)
        if not isinstance(name, str):
            raise InvalidRequest(f"{key}.{index}.{role}: expected a text")
        if name in RETURNED or (fields.get("tool_calls") and not fields.get(content)):
            continue
        messages.append(
            {"role": ROLES.get(name, name), "content": _text(fields.get(content), f"{key}.{index}.{content}")}
        )
    if not messages:
        raise InvalidRequest(f"{key} has no text")
    return messages


def _text(content: Any, where: str) -> str:
    """Returns a text, or text parts joined."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    found = [one.get("text") for one in parts if isinstance(one, dict) and one.get("type") == "text"]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(parts):
        raise InvalidRequest(f"{where}: expected a text or parts of type text")
    return "".join(texts)


def _read(
    client: Client, part: list[tuple[int, Example]], vectors: Sequence[str]
) -> Iterator[tuple[int, list[float] | str]]:
    """Yields z and score of each vector for each example, or why it could not be read. Where the server refuses a request for its texts,
    both halves are asked for, so that one example that is too long leaves the others."""
    texts = [example for _, example in part]
    try:
        answer = client.explain(
            texts, vectors=vectors, turns=isinstance(texts[0], list) or None, threshold=0.0, top=len(vectors)
        )
    except ApiError as error:
        if error.status != 400 or error.param in ("vectors", "layers"):
            raise
        if len(part) == 1:
            yield part[0][0], error.message
            return
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            yield from _read(client, half, vectors)
        return
    yield from zip((number for number, _ in part), _projections(answer, vectors), strict=True)


def _projections(answer: ExplainAnswer, vectors: Sequence[str]) -> Iterator[list[float] | str]:
    """Yields z and score of each vector in turn, for each text, or why there are none."""
    ids = [next(one for one in answer.vectors if name in (one, one.partition("@")[0])) for name in vectors]
    for text in answer.texts:
        found = {one.vector: one for one in text.concepts}
        if not found:
            yield "a single token belongs to no word, so it has no score"
            continue
        yield [value for one in ids for value in (found[one].z, found[one].score)]
