"""SteeringAPI: FastAPI with one error shape in its OpenAPI document, and the document behind the key like all else."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from steering.schemas.base import ErrorAnswer

_UNUSED = ("HTTPValidationError", "ValidationError")


class SteeringAPI(FastAPI):
    """The application. Errors of every route are described once, as `default`."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name in _UNUSED:
                schemas.pop(name, None)
            schemas |= _schemas_of_errors()
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path in document["paths"].values():
                for operation in path.values():
                    _describe_errors(operation)
            self.openapi_schema = document
        return self.openapi_schema


def _schemas_of_errors() -> dict[str, Any]:
    schema = ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ErrorAnswer": schema}


def _describe_errors(operation: dict[str, Any]) -> None:
    operation["responses"].pop("422", None)
    reference = {"$ref": "#/components/schemas/ErrorAnswer"}
    operation["responses"]["default"] = {
        "description": "An error, in the one shape",
        "content": {"application/json": {"schema": reference}},
    }
    if "x-scope" in operation:
        operation["security"] = [{"key": []}]
