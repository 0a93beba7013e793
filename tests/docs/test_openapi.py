"""docs/openapi.json is the document that the server serves."""

import json

import pytest

from tools.write_openapi import PATH, document


def test_the_committed_openapi_document_is_fresh() -> None:
    fresh = PATH.read_text(encoding="utf-8") == document()
    assert fresh, "the API has changed: write docs/openapi.json again with `make openapi`"


@pytest.mark.parametrize(("parameter", "status"), [("if-match", "412"), ("force", "409")])
def test_what_a_parameter_may_lead_to_is_declared(parameter: str, status: str) -> None:
    operations = [operation for path in json.loads(document())["paths"].values() for operation in path.values()]
    having = [one for one in operations if parameter in {field["name"] for field in one.get("parameters", ())}]
    assert having
    assert all(status in one["responses"] for one in having)
