"""Every route that takes a body has its worst body and its first refused one in `python -m benchmarks.worst_bodies`."""

import json

from app.core.settings import Settings
from benchmarks.served.worst_bodies import BODIES, Body, without_case
from tests.app.document import DOCUMENT
from tests.scripted_model import SCRIPTED_MODEL

LIMITS = {
    "limits": Settings().limits(),
    "d_model": SCRIPTED_MODEL.d_model,
    "layers": SCRIPTED_MODEL.layer_count,
    "model": {"name": SCRIPTED_MODEL.name, "context_length": SCRIPTED_MODEL.context_length},
}

PARSED = 3_000_000
"""Bytes up to which a body is parsed, to see that it is JSON."""


def test_every_route_with_a_body_has_a_case() -> None:
    document = {**DOCUMENT, "paths": DOCUMENT["paths"].copy()}
    assert without_case(document) == set()
    document["paths"]["/v1/new"] = {"post": {"requestBody": {}}}
    assert without_case(document) == {"POST /v1/new"}
    assert without_case(document, [*BODIES, Body("POST /v1/gone", "refused", lambda _: b"", 4)]) == {
        "POST /v1/new",
        "POST /v1/gone",
    }


def test_bodies_fit_the_limits_of_their_size() -> None:
    settings = Settings()
    for body in BODIES:
        content = body.content(LIMITS)
        assert len(content) <= settings.max_upload_bytes, body
        if len(content) < PARSED and not body.route.endswith("/batch"):
            json.loads(content)
