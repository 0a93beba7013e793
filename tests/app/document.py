"""The OpenAPI document, which takes half a second to build, once for all tests of a process. They do not change it."""

from typing import Any

from app.core.settings import Settings
from app.main import create_app

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
