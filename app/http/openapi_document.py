"""SteeringAPI: FastAPI whose OpenAPI document describes the one shape of errors."""

from typing import Any

from fastapi import FastAPI

from steering.schemas.base import ErrorAnswer


class SteeringAPI(FastAPI):
    """The application. Errors of every operation are described once, as `default`."""

    def openapi(self) -> dict[str, Any]:
        """Returns the document, which is built once."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no response has
                schemas.pop(name, None)
            schemas |= _error_schemas()
            for path in document["paths"].values():
                for operation in path.values():
                    _describe_errors(operation)
        return super().openapi()


def _error_schemas() -> dict[str, Any]:
    schema = ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ErrorAnswer": schema}


def _describe_errors(operation: dict[str, Any]) -> None:
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}},
    }
