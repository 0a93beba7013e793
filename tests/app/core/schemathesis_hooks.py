"""Hooks of schemathesis: what it sends is more often meant, because the document cannot say which names and models exist.

It imports this file as SCHEMATHESIS_HOOKS, from `test_openapi_cases.py`.
"""

import json
from typing import Any

import schemathesis

NAMES = ["mood", "mood@1", "unknown"]
"""Values of fields that name a vector."""


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Narrows the request models of the document: either a prompt or messages, and vectors that may exist."""
    schemas = raw_schema["components"]["schemas"]
    for one in schemas.values():
        properties = one.get("properties", {})
        if "prompt" in properties and "messages" in properties:
            one["anyOf"] = [
                {"required": [given], "properties": {other: False}}
                for given, other in (("prompt", "messages"), ("messages", "prompt"))
            ]
        for name in ("vector", "reader"):
            _narrow(properties.get(name, {}))
    for path, line in (("/v1/generate/batch", "GenerateRequest"), ("/v1/score/batch", "ScoreRequest")):
        batch = raw_schema["paths"][path]["post"]["requestBody"]["content"]["application/jsonl"]
        batch["schema"] = {"type": "array", "items": {"$ref": f"#/components/schemas/{line}"}}


def _narrow(schema: dict[str, Any]) -> None:
    for one in (schema, *schema.get("anyOf", ())):
        if one.get("type") == "string":
            one["enum"] = NAMES


@schemathesis.serializer("application/jsonl")
def json_lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """Writes the lines of a batch. A negative case may be anything."""
    lines = value if isinstance(value, list) else [value]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
