"""SteeringAPI: FastAPI whose OpenAPI document lists the errors of every operation by status, with their codes."""

from typing import Any

from fastapi import FastAPI

from app import errors as http_errors
from app.http.errors import OUTCOMES, outcome_of
from steering import errors
from steering.schemas.base import ErrorAnswer

ALWAYS = (403, 500, 503)
"""A Host that is refused, a defect, a server that is starting or stopping."""
WITH_KEY = (400, 401, 429)
WITH_BODY = (404, 413, 415, 422)
"""A body names vectors, profiles and models, and may make activations non-finite."""
STORING = (507,)
DELETING = (409,)
RETRIED = (429, 503)


class SteeringAPI(FastAPI):
    """The application. The responses to errors are described once for each status, and referred to."""

    def openapi(self) -> dict[str, Any]:
        """Returns the document, which is built once."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no response has
                schemas.pop(name, None)
            schemas |= _error_schemas()
            components["responses"] = {f"Error{status}": _described(status) for status in sorted(_codes())}
            for path in document["paths"].values():
                for method, operation in path.items():
                    _describe_errors(method, operation)
        return super().openapi()


def _error_schemas() -> dict[str, Any]:
    schema = ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ErrorAnswer": schema}


def _codes() -> dict[int, list[str]]:
    """Returns the codes of errors by status."""
    codes: dict[int, set[str]] = {outcome.status: set() for outcome in OUTCOMES.values()}
    for kind in (*vars(errors).values(), *vars(http_errors).values()):
        if isinstance(kind, type) and issubclass(kind, errors.SteeringError):
            codes[outcome_of(kind("")).status].add(kind.code)
    return {status: sorted(found) for status, found in codes.items()}


def _described(status: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    described = {"description": "Codes: " + ", ".join(_codes()[status]), "content": content}
    if status in RETRIED:
        described["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "number"}}}
    return described


def _describe_errors(method: str, operation: dict[str, Any]) -> None:
    """Lists the statuses that an operation may answer with besides its own."""
    statuses = set(ALWAYS)
    if "security" in operation:
        statuses.update(WITH_KEY)
    if any(one["in"] == "path" for one in operation.get("parameters", ())):
        statuses.add(404)
    if "requestBody" in operation:
        statuses.update(WITH_BODY)
    if method != "get":
        statuses.update(STORING)
    if method == "delete":
        statuses.update(DELETING)
    operation["responses"].pop("422", None)
    for status in sorted(statuses):
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/Error{status}"}
