"""create_app: the routes, the errors and the wrappers of one server. Nothing runs at import."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app.components import open_database, open_engine
from app.http.errors import on_http_error, on_invalid, on_steering_error
from app.http.middleware import HostMiddleware, RequestMiddleware
from app.http.openapi import SteeringAPI
from app.http.playground import mount_playground
from app.routes import (
    compare,
    concepts,
    evaluate,
    extract,
    generate,
    health,
    jobs,
    latent_space,
    logit_lens,
    profiles,
    readout,
    replay,
    steering,
    system,
    vectors,
)
from app.settings import Settings
from app.state import AppState, EngineFactory, StoreFactory
from steering import __version__
from steering.errors import SteeringError

ROUTERS = (  # looked through in this order, so what is asked most comes first
    generate.router,
    health.router,
    system.router,
    vectors.uploads,
    extract.router,
    vectors.files,
    vectors.router,
    profiles.router,
    steering.router,
    compare.router,
    replay.router,
    readout.router,
    latent_space.router,
    logit_lens.router,
    evaluate.router,
    jobs.router,
    concepts.router,
)


def create_app(
    settings: Settings | None = None,
    engine_factory: EngineFactory = open_engine,
    store_factory: StoreFactory = open_database,
) -> FastAPI:
    """A server of its own, with its own state; several may live in one process."""
    state = AppState(settings or Settings(), engine_factory, store_factory)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with state.running():
            yield

    app = SteeringAPI(
        title="steering-server",
        version=__version__,
        description="Concept vectors in the residual stream of a language model: make them, steer with them, compare.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.steering = state
    for router in ROUTERS:
        app.include_router(router)
    mount_playground(app)
    app.add_exception_handler(SteeringError, on_steering_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(HostMiddleware, settings=state.settings)
    app.add_middleware(RequestMiddleware, state=state)
    return app
