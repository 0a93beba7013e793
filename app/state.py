"""AppState: everything that lives as long as the server does; built and closed in the application's lifespan."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeAlias, TypeVar, cast

import structlog
from starlette.requests import Request

from app.http.admission import Admission, AdmissionControl
from app.http.authentication import ApiKeys
from app.http.errors import hidden
from app.http.sse import StreamTimeouts, ended
from app.metrics import Metrics
from app.services.jobs import Jobs
from app.settings import Settings
from steering.engine.api import Engine, EngineStats
from steering.errors import Draining, EngineDead, NotReady, SteeringError
from steering.plan.resolve import RecentPlans
from steering.store.base import Store
from steering.threads import ThreadPerTaskExecutor

log = structlog.get_logger(__name__)
T = TypeVar("T")

EngineFactory: TypeAlias = Callable[[Settings], Engine]
"""Builds the engine; runs in a thread of its own, because loading a model takes seconds to minutes."""

StoreFactory: TypeAlias = Callable[[Settings], Awaitable[Store]]
"""Opens the database, migrations included."""


class AppState:
    """One server's engine, store, keys, permits, jobs and measurements, and where it is in its life."""

    def __init__(self, settings: Settings, engine_factory: EngineFactory, store_factory: StoreFactory) -> None:
        self.settings = settings
        self.keys = ApiKeys(settings.api_keys)
        self.permits = AdmissionControl(settings.max_running + settings.max_waiting)
        self.metrics = Metrics(self.stats)
        self.plans = RecentPlans()
        self.draining = False
        self.in_flight = 0
        self.load_failure: SteeringError | None = None
        self.loaded = asyncio.Event()
        self.on_drained: Callable[[], None] = lambda: None
        self.idle = asyncio.Event()
        self.idle.set()
        self.interrupted: asyncio.Future[SteeringError]
        self._engine_factory, self._store_factory = engine_factory, store_factory
        self._engine: Engine | None = None
        self._store: Store | None = None
        self._jobs: Jobs | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Store first, then the engine in the background, so that the port opens at once; closed in reverse."""
        self.interrupted = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().set_default_executor(ThreadPerTaskExecutor())
        self._store = await self._store_factory(self.settings)
        settings = self.settings
        self._jobs = Jobs(self._store.jobs, running=settings.max_jobs, waiting=settings.max_queued_jobs)
        loading: asyncio.Task[None] | None = None
        try:
            await self._jobs.start()
            loading = asyncio.create_task(self._load())
            yield
        finally:
            if loading is not None:
                await ended(loading)
            await self._jobs.close()
            if self._engine is not None:
                await self._engine.close()
            gc.unfreeze()
            await self._store.close()

    async def _load(self) -> None:
        try:
            engine = self._engine = await in_daemon_thread(lambda: self._engine_factory(self.settings))
            # what is there now stays: a collection that walked all of it would stop everyone for a quarter of a second
            gc.freeze()
            log.info("ready", model=engine.info.name, device=engine.info.device)
        except Exception as error:
            log.exception("model_load_failed")
            self.load_failure = hidden(error)
        finally:
            self.loaded.set()

    @property
    def engine(self) -> Engine:
        """The engine. Raises NotReady while it loads, the reason when loading failed, EngineDead."""
        if self._engine is None:
            raise self.load_failure or NotReady("the model is still loading")
        if not self._engine.stats().alive:
            raise EngineDead("the engine has stopped; the server needs a restart")
        return self._engine

    @property
    def store(self) -> Store:
        """The store. Raises NotReady outside the lifespan."""
        if self._store is None:
            raise NotReady("the store is not open yet")
        return self._store

    @property
    def jobs(self) -> Jobs:
        """The jobs. Raises NotReady outside the lifespan."""
        if self._jobs is None:
            raise NotReady("the store is not open yet")
        return self._jobs

    @property
    def patience(self) -> StreamTimeouts:
        """How long a stream waits."""
        settings = self.settings
        return StreamTimeouts(settings.keepalive_seconds, settings.stall_seconds, settings.request_seconds)

    def stats(self) -> EngineStats | None:
        """What the engine does now; None before there is one."""
        return None if self._engine is None else self._engine.stats()

    @contextmanager
    def request_under_way(self) -> Iterator[Admission]:
        """Counts a request for as long as it is being answered, and takes back the rows it was lent."""
        lease = self.permits.lease()
        self.in_flight += 1
        self.idle.clear()
        self.metrics.in_flight.inc()
        try:
            yield lease
        finally:
            lease.close()
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()
            self.metrics.in_flight.dec()

    def check_open(self) -> None:
        """Raises Draining once the server has been asked to stop."""
        if self.draining:
            raise Draining("the server is stopping; try another or try again later")

    async def check_ready(self) -> None:
        """Raises what keeps the server from its work: draining, loading, a dead engine, a store that does not answer."""
        self.check_open()
        _ = self.engine
        await self.store.ping()

    async def drain(self) -> None:
        """Refuses new work, lets what runs end until the deadline, then ends the rest with an error. Jobs are cut at once."""
        self.draining = True
        if self._jobs is not None:
            await self._jobs.close()
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await self.idle.wait()
        except TimeoutError:
            if not self.interrupted.done():
                self.interrupted.set_result(Draining("the server stopped before this request had ended"))
        self.on_drained()


def state_of(request: Request) -> AppState:
    """The state of the server that a request came to."""
    return cast(AppState, request.app.state.steering)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """The result of blocking work, run in a thread that does not keep the process alive when it must stop."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(cast(T, value))

    def run() -> None:
        value: T | None = None
        failure: BaseException | None = None
        try:
            value = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name="load-model", daemon=True).start()
    return await result
