"""SteeringAPI: FastAPI whose OpenAPI document lists the errors of every operation by status, with their codes."""

from threading import Lock
from typing import Any

from fastapi import FastAPI

from app.core import errors as http_errors
from app.core.errors import OUTCOMES, outcome_of
from steering import errors
from steering.schemas.base import Answer, ErrorAnswer, TextErrorAnswer, TypedErrorAnswer

_FORMS: dict[str, type[Answer]] = {"Error": ErrorAnswer, "TypedError": TypedErrorAnswer, "TextError": TextErrorAnswer}
"""The forms of errors. A route names one other than the first as `x-errors` in its `openapi_extra`."""


class SteeringAPI(FastAPI):
    """The application. The responses to errors are described once for each status, and referred to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._building = Lock()  # several threads may ask for the document

    def openapi(self) -> dict[str, Any]:
        """Returns the document, which is built once."""
        with self._building:
            if self.openapi_schema is None:
                _describe(super().openapi())
            return super().openapi()


def _describe(document: dict[str, Any]) -> None:
    """Adds the responses to errors, and removes FastAPI's own, which no response has."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    responses = components["responses"] = {}
    for prefix, model in _FORMS.items():
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
        for status, codes in sorted(_codes().items()):
            responses[f"{prefix}{status}"] = _response(status, codes, model.__name__)
    for path in document["paths"].values():
        for method, operation in path.items():
            _describe_errors(method, operation)


def _codes() -> dict[int, set[str]]:
    """Returns the codes of errors by status."""
    codes: dict[int, set[str]] = {outcome.status: set() for outcome in OUTCOMES.values()}
    for kind in (*vars(errors).values(), *vars(http_errors).values()):
        if isinstance(kind, type) and issubclass(kind, errors.SteeringError):
            codes[outcome_of(kind("")).status].add(kind.code)
    return codes


def _response(status: int, codes: set[str], schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    described = {"description": "Codes: " + ", ".join(sorted(codes)), "content": content}
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return described


def _describe_errors(method: str, operation: dict[str, Any]) -> None:
    """Lists the statuses that an operation may answer with besides its own."""
    parameters = operation.get("parameters", ())
    statuses = {403, 500, 503}  # a Host that is refused, a defect, a server that is starting or stopping
    if "security" in operation:
        statuses |= {400, 401, 429}
    if any(parameter["in"] == "path" for parameter in parameters):
        statuses.add(404)
    if "requestBody" in operation:  # names vectors, profiles and models, and may make activations non-finite
        statuses |= {404, 413, 415, 422}
    if method != "get":
        statuses.add(507)
    names = {parameter["name"] for parameter in parameters}
    if method == "delete" or names & {"wait", "force"}:
        statuses.add(409)
    if "if-match" in names:
        statuses.add(412)
    operation["responses"].pop("422", None)
    form = operation.pop("x-errors", "Error")
    for status in sorted(statuses):
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/{form}{status}"}
