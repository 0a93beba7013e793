"""Every numeric field of every body, found by walking the OpenAPI document, refuses what is no finite number, with 400."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.app.conftest import Server, refusal
from tests.app.document import DOCUMENT

NOT_A_NUMBER = ("NaN", "Infinity", "-Infinity", "1e400", '"nan"', '"1"', "true", "9" * 5000, "[1]", "{}", '"\\ud800"')
MARK = 123454321


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema behind its reference."""
    while "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def kinds(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema."""
    schema = resolved(schema)
    forms = schema.get("anyOf") or schema.get("oneOf")
    return [schema] if not forms else [kind for form in forms for kind in kinds(form)]


def sample(schema: dict[str, Any]) -> Any:
    """A small value that fits a schema."""
    kind = kinds(schema)[0]
    if "const" in kind or "enum" in kind:
        return kind.get("const", kind.get("enum", [""])[0])
    if kind.get("type") == "object":
        return {name: sample(kind["properties"][name]) for name in kind.get("required", ())}
    if kind.get("type") == "array":
        return [sample(kind["items"])] * kind.get("minItems", 0)
    return {"string": "a", "boolean": False, "null": None}.get(kind.get("type", ""), 1)


def numeric(schema: dict[str, Any], depth: int = 0) -> Iterator[Any]:
    """A body for each numeric field below a schema, with MARK in its place and all that is required around it."""
    if depth > 7:
        return
    for kind in kinds(schema):
        if kind.get("type") in ("number", "integer"):
            yield MARK
        elif kind.get("type") == "array":
            yield from ([inner] for inner in numeric(kind.get("items", {}), depth + 1))
        elif kind.get("type") == "object":
            for name, field in kind.get("properties", {}).items():
                yield from ({**sample(kind), name: inner} for inner in numeric(field, depth + 1))
            for field in kind.get("patternProperties", {}).values():
                yield from ({"1": inner} for inner in numeric(field, depth + 1))


def place(body: Any) -> str:
    """Where MARK is: `steering.0.strength`."""
    if isinstance(body, dict):
        name, inner = next((name, inner) for name, inner in body.items() if str(MARK) in str(inner))
        return f"{name}.{place(inner)}".rstrip(".")
    return f"0.{place(body[0])}".rstrip(".") if isinstance(body, list) else ""


def takes_a_flag(body: Any) -> bool:
    """logprobs may also be true."""
    return bool(isinstance(body, dict) and "logprobs" in body)


def takes_a_text(path: str, body: Any) -> bool:
    """Prompts and inputs of the OpenAI routes may also be texts, or lists of tokens, and durations of Ollama's texts."""
    if path in ("/api/chat", "/api/generate"):
        return place(body) == "keep_alive"
    return path in ("/v1/completions", "/v1/embeddings") and place(body).startswith(("prompt", "input"))


def takes_an_object(path: str, body: Any) -> bool:
    """A position may also be the span of a phrase, except in the OpenAI route, and the error then names what the object lacks."""
    return place(body).rpartition(".")[2] == "position" and path != "/v1/embeddings"


CASES = [
    (method.upper(), path, body)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if (content := operation.get("requestBody", {}).get("content", {}).get("application/json"))
    for body in numeric(content["schema"])
]


def test_the_walk_finds_the_fields() -> None:
    assert len(CASES) > 100
    places = {(path, place(body)) for _, path, body in CASES}
    assert ("/v1/generate", "steering.0.strength") in places
    assert ("/v1/generate", "steering.0.when.all.0.above") in places
    assert ("/v1/vectors", "directions.1.0") in places


async def test_no_numeric_field_takes_what_is_no_number(server: Server) -> None:
    """A field gets every value where its name is met first, and two of them wherever it is met again."""
    wrong, met = [], set[str]()
    for number, (method, path, body) in enumerate(CASES):
        text, name = str(body).replace("'", '"'), place(body).rpartition(".0")[0] or place(body)
        values = [NOT_A_NUMBER[(number + step) % len(NOT_A_NUMBER)] for step in (0, 5)] if name in met else NOT_A_NUMBER
        met.add(name)
        for value in values:
            if (value == "true" and takes_a_flag(body)) or (value[0] in '"[' and takes_a_text(path, body)):
                continue
            answer = await server.client.request(
                method,
                path.replace("{name}", "a"),
                content=text.replace(str(MARK), value).encode(),
                headers={"content-type": "application/json"},
            )
            error = refusal(answer)
            parsed = not error["message"].startswith("the body is not valid JSON")
            expected = f"{place(body)}.span" if value == "{}" and takes_an_object(path, body) else place(body)
            named = error["param"] == (expected if parsed else None)
            if answer.status_code != 400 or not named or "99999" in answer.text:
                wrong.append((path, place(body), value[:20], answer.status_code, error["param"]))
    assert wrong == []


@pytest.mark.parametrize("value", ["nan", "inf", "1e3", "", "9" * 5000, "-1", "true", "1.5", "\ud800", "\x00"])
async def test_numbers_in_addresses(server: Server, value: str) -> None:
    for path in ("/v1/vectors?limit=", "/v1/jobs?limit=", "/v1/vectors/a?version=", "/v1/vectors/a/directions?layers="):
        answer = await server.client.get(path + quote(value, safe="", errors="surrogatepass"))
        assert answer.status_code == 400, path
        assert "99999" not in answer.text


@pytest.mark.parametrize("scale", [5e-324, 1e-40, 3.5e38, 1.7e308])
async def test_a_scale_that_float32_cannot_hold_is_refused_everywhere(server: Server, scale: float) -> None:
    given = {"directions": {"1": [1.0] * 8}, "scale": {"1": scale}}
    steering = [{"vector": given, "strength": 0.5, "share_dose": True, "layers": [1]}]
    for path, body in (
        ("/v1/vectors", {"name": "x", **given}),
        ("/v1/generate", {"prompt": "a", "max_tokens": 1, "steering": steering}),
    ):
        refused = await server.client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "scale"), refused.text
        assert "1.2e-38" in refused.json()["error"]["message"]
