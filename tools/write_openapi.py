"""Writes the OpenAPI document of the server to docs/openapi.json. Usage: `python -m tools.write_openapi`."""

import json
from pathlib import Path

from app.core.settings import Settings
from app.main import create_app

PATH = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def document() -> str:
    """Returns the document as it is committed: sorted keys, so that a change of the API is a small difference."""
    return json.dumps(create_app(Settings()).openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
