"""Grammar: what an answer must match; and the bounds of JSON schemas, in requests and inside grammars."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import lcm
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from steering.strict_json import NotFinite, finite_number

MAX_SCHEMA_BYTES = 64_000
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_VALUES = 4_096
MAX_ENUM_VALUES = 1_024
"""Of all `enum` lists of a schema together."""
MAX_GRAMMAR = 32_000
"""Characters of a Lark grammar."""
MAX_MULTIPLE = 10_000
"""Least common multiple of all `multipleOf` of a schema, in units of their last decimal: remainders that are told apart."""

_JSON_DIRECTIVE = re.compile(r"%json\s*")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match from its first character to its last.

    kind: what `text` is: a JSON schema, a regular expression, or a grammar in Lark's notation.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str

    @property
    def param(self) -> str:
        """The field of a request that it comes from."""
        return {"json_schema": "response_format", "regex": "guided_regex", "lark": "guided_grammar"}[self.kind]

    @property
    def fields(self) -> dict[str, Any]:
        """The field of a request that it comes from, with a value that gives it again."""
        if self.kind != "json_schema":
            return {self.param: self.text}
        return {self.param: {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(self.text)}}}


def bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a schema that is too deep or too large. Iterates level by level, and ends at the first bound."""
    level, values, options, multiples = [schema], 1, 0, list[Decimal]()
    for _ in range(MAX_SCHEMA_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                options += len(item["enum"]) if isinstance(item.get("enum"), list) else 0
                if type(multiple := item.get("multipleOf")) in (int, float):
                    multiples.append(Decimal(str(multiple)))
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        values += len(deeper)
        if values > MAX_SCHEMA_VALUES:
            raise ValueError(f"the schema has more than {MAX_SCHEMA_VALUES} values")
        if options > MAX_ENUM_VALUES:
            raise ValueError(f"the schema lists {options} values in 'enum'; at most {MAX_ENUM_VALUES}")
        if not deeper:
            break
        level = deeper
    else:
        raise ValueError(f"the schema is nested deeper than {MAX_SCHEMA_DEPTH} levels")
    if (size := len(json.dumps(schema))) > MAX_SCHEMA_BYTES:
        raise ValueError(f"the schema has {size} bytes; at most {MAX_SCHEMA_BYTES}")
    _check_multiples(multiples)
    return schema


def _check_multiples(multiples: Sequence[Decimal]) -> None:
    """Raises ValueError for a `multipleOf` that is not above 0, which would make every common multiple 0, and for a least common
    multiple of more remainders than are told apart."""
    if any(multiple <= 0 for multiple in multiples):
        raise ValueError("'multipleOf' must be above 0")
    places, common = max((-int(one.as_tuple().exponent) for one in multiples), default=0), 1
    for multiple in multiples:
        common = lcm(common, int(multiple.scaleb(places)))
        if common > MAX_MULTIPLE:
            raise ValueError(
                f"'multipleOf': the least common multiple, in units of the last decimal, is above {MAX_MULTIPLE}"
            )


def schemas_in(grammar: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yields where each JSON schema in a Lark grammar begins and ends, after its `%json`, and the schema. Raises ValueError for
    one that is no JSON object, or has a number that is not finite. What a schema contains is not searched again."""
    decoder = json.JSONDecoder(parse_constant=finite_number, parse_float=finite_number)
    directive = _JSON_DIRECTIVE.search(grammar)
    while directive is not None:
        try:
            schema, end = decoder.raw_decode(grammar, directive.end())
        except NotFinite as error:
            raise ValueError(f"the JSON schema after '%json': {error}") from None
        except (ValueError, RecursionError):
            schema, end = None, 0
        if not isinstance(schema, dict):
            raise ValueError(  # noqa: TRY004 - what pydantic reports
                "'%json' must be followed by a JSON schema, which is an object"
            )
        yield directive.end(), end, schema
        directive = _JSON_DIRECTIVE.search(grammar, end)


def with_bounded_schemas(grammar: str) -> str:
    """Raises ValueError for a grammar with a JSON schema that is too deep or too large."""
    for _, _, schema in schemas_in(grammar):
        bounded(schema)
    return grammar


Schema: TypeAlias = Annotated[dict[str, Any], Field(max_length=256), AfterValidator(bounded)]
"""A JSON schema of bounded size."""
