"""create_app: builds one server with its routes, error handlers and middleware. Nothing runs at import."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.api import (
    audit,
    batch,
    compare,
    concepts,
    dictionaries,
    evaluations,
    generate,
    jobs,
    keys,
    links,
    openai,
    policy,
    profiles,
    reading,
    system,
    transfer,
    vectors,
)
from app.api.system import mount_playground
from app.core.components import open_database, open_engine
from app.core.errors import on_error
from app.core.middleware import HostMiddleware, RequestMiddleware
from app.core.openapi_document import SteeringAPI
from app.core.settings import Settings
from app.core.tracing import TraceMiddleware
from app.state import AppState, EngineFactory, StoreFactory
from steering import __version__
from steering.errors import SteeringError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ROUTERS = (  # matched in this order, so the most frequent come first
    generate.router, batch.router, compare.router, openai.router, system.health, system.router, vectors.uploads, vectors.files,
    transfer.router, vectors.router, evaluations.router, profiles.router, reading.router, reading.uploads, dictionaries.router,
    jobs.router, links.router, keys.router, audit.router, policy.router, concepts.router,
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
    app.state.steering = state
    app.state.methods = _methods_of(ROUTERS)
    for router in ROUTERS:
        app.include_router(router)
    mount_playground(app)
    app.add_middleware(HostMiddleware, settings=state.settings)
    if traces is not None:
        app.add_middleware(TraceMiddleware, provider=traces)
    app.add_middleware(RequestMiddleware, state=state)
    return app


def _methods_of(routers: Iterable[APIRouter]) -> Mapping[str, Sequence[str]]:
    """Returns the methods of every path, for the answer to another one."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for route in (one for router in routers for one in router.routes):
        if isinstance(route, APIRoute):
            found[route.path] |= route.methods or set()
    return {path: sorted(methods) for path, methods in found.items()}
