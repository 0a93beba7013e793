"""docs/openapi.json is the document that the server serves."""

from tools.write_openapi import PATH, document


def test_the_committed_openapi_document_is_fresh() -> None:
    fresh = PATH.read_text(encoding="utf-8") == document()
    assert fresh, "the API has changed: write docs/openapi.json again with `make openapi`"
