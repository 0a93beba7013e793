"""create_app: builds one server with its routes, error handlers and middleware. Nothing runs at import."""

from collections import defaultdict
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.api import (
    anthropic,
    batch,
    compare,
    completions,
    evaluations,
    generate,
    jobs,
    keys,
    ollama,
    openai,
    policy,
    profiles,
    reading,
    responses,
    system,
    vectors,
)
from app.core.components import open_database, open_engine
from app.core.errors import on_error
from app.core.middleware import HostMiddleware, RequestMiddleware
from app.core.openapi_document import SteeringAPI
from app.core.settings import Settings
from app.core.telemetry import TraceMiddleware
from app.state import AppState, EngineFactory, StoreFactory
from steering import __version__
from steering.errors import SteeringError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ROUTERS = (  # matched in this order, so the most frequent come first
    generate.router, batch.router, compare.router, openai.router, completions.router, responses.router, anthropic.router, ollama.router, system.health, system.router,
    vectors.uploads, vectors.files, evaluations.uploads, vectors.router, evaluations.router, profiles.router, reading.router, reading.uploads, jobs.router,
    profiles.links, keys.router, policy.router, system.concepts,
)  # fmt: skip


def create_app(
    settings: Settings | None = None,
    engine_factory: EngineFactory = open_engine,
    store_factory: StoreFactory = open_database,
    traces: "TracerProvider | None" = None,
) -> FastAPI:
    """Builds a server with its own state; several can run in one process. Spans of requests go to `traces`."""
    state = AppState(settings or Settings(), engine_factory, store_factory)
    app = SteeringAPI(
        title="steering-server",
        version=__version__,
        description="Creates concept vectors and steers a language model with them while it generates.",
        lifespan=lambda _: state.running(),
        exception_handlers=dict.fromkeys((SteeringError, RequestValidationError, HTTPException), on_error),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    methods: defaultdict[str, set[str]] = defaultdict(set)
    for router in ROUTERS:
        # `include_router` would build every route again, at the first request of each app
        app.router.routes += router.routes
        for route in router.routes:
            if isinstance(route, APIRoute):
                methods[route.path] |= route.methods or set()
    app.state.steering = state
    app.state.error_forms = {"/v1/messages": anthropic.error_form, "/api/": ollama.error_form}
    app.state.methods = {path: sorted(found) for path, found in methods.items()}  # for the answer to another one
    system.mount_playground(app)
    app.add_middleware(HostMiddleware, settings=state.settings)
    if traces is not None:
        app.add_middleware(TraceMiddleware, provider=traces)
    app.add_middleware(RequestMiddleware, state=state)
    return app
