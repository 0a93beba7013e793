"""docs/openapi.json is the document that the server serves."""

import json

import pytest

from tools.write_openapi import PATH, document


def test_the_committed_openapi_document_is_fresh() -> None:
    fresh = PATH.read_text(encoding="utf-8") == document()
    assert fresh, "the API has changed: write docs/openapi.json again with `make openapi`"


def test_exactly_the_routes_that_stream_say_so() -> None:
    forms = {"text/event-stream", "application/x-ndjson"}
    served = json.loads(document())
    schemas = served["components"]["schemas"]
    for path, operations in served["paths"].items():
        for operation in operations.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            fields = schemas[body["$ref"].rsplit("/", 1)[1]]["properties"] if "$ref" in body else {}
            streams = "stream" in fields or path.endswith("/events")
            assert streams == bool(forms & operation["responses"].get("200", {}).get("content", {}).keys()), path


@pytest.mark.parametrize(("parameter", "status"), [("if-match", "412"), ("force", "409")])
def test_what_a_parameter_may_lead_to_is_declared(parameter: str, status: str) -> None:
    operations = [operation for path in json.loads(document())["paths"].values() for operation in path.values()]
    having = [one for one in operations if parameter in {field["name"] for field in one.get("parameters", ())}]
    assert having
    assert all(status in one["responses"] for one in having)
