"""Serves the built playground at `/`, or a page that says how to build it. The files are public: they hold no data."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

STATIC = Path(str(files("app"))) / "static"

_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>steering-server</title>
<h1>The server is running</h1>
<p>The playground has not been built. In the source tree, <code>make web</code> builds it; the API works without it.</p>
<p>Start at <a href="/v1/capabilities">/v1/capabilities</a> and <a href="/openapi.json">/openapi.json</a>.</p></html>
"""


def is_built() -> bool:
    """Whether there is a playground to serve."""
    return (STATIC / "index.html").is_file()


class HashedFiles(StaticFiles):
    """Serves built files. The name of a script or style sheet contains a hash of its content, so it may be cached for good."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Adds the cache header to what StaticFiles answers."""
        response = super().file_response(*args, **kwargs)
        forever = str(args[0] if args else kwargs["full_path"]).endswith((".js", ".css"))
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if forever else "no-cache"
        return response


def mount_playground(app: FastAPI) -> None:
    """Adds `/` and, when built, `/assets`."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def playground() -> Response:
        if is_built():
            return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})
        return HTMLResponse(_NOT_BUILT, status_code=404)

    if (STATIC / "assets").is_dir():
        app.mount("/assets", HashedFiles(directory=STATIC / "assets"), name="assets")
