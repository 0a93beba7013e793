"""AppState: everything that lives as long as the server; opened and closed in the application's lifespan."""

import asyncio
import gc
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias, cast

import structlog

from app.api.jobs import Jobs
from app.api.keys import ApiKeys, record_change
from app.api.policy import DefaultSteering, GovernedEngine, Policy
from app.api.second_model import SecondModel
from app.api.vectors import Cosines
from app.core.answers import ended
from app.core.errors import Draining, public_error
from app.core.settings import Settings
from app.core.state import ServerState
from app.core.synchronization import Synchronization, new_server_id, prune
from app.core.telemetry import Metrics
from steering.engine.api import Engine
from steering.errors import NotReady, SteeringError, StoreUnavailable
from steering.namespaces import SHARED
from steering.store.store import Store
from steering.threads import run_in_thread

log = structlog.get_logger(__name__)

EngineFactory: TypeAlias = Callable[[Settings], Engine]
"""Builds the engine; runs in a daemon thread, because loading a model takes seconds to minutes."""
StoreFactory: TypeAlias = Callable[[Settings], Awaitable[Store]]
"""Opens the database, migrations included."""
PING_SECONDS = 1.0
"""How long readiness relies on the last answer of the store."""
READY_PAUSE_SECONDS = 0.5
"""Pause between two checks at the start whether the server is ready."""
SCRAPE_SECONDS = 2.0
"""How long a scrape of the metrics waits for the database; Prometheus itself waits for 10 s."""


class AppState(ServerState):
    """One server: its engine, its store, its parts, and its course from start to stop."""

    def __init__(self, settings: Settings, engine_factory: EngineFactory, store_factory: StoreFactory) -> None:
        super().__init__(settings)
        self.keys = self.add(ApiKeys(settings))
        self.identify = self.keys.identify
        self.record = lambda *change: record_change(self.store, *change)
        self.policy = self.add(Policy(settings, self.plans))
        self.default_steering = self.add(DefaultSteering(settings, self.plans))
        self.add(Cosines())
        self.add(SecondModel(settings))
        self.metrics = Metrics(self.stats, lambda: self._jobs.counts() if self._jobs else {}, self.policy)
        self.stopping = False
        self.loaded = asyncio.Event()
        self.engine_failed = asyncio.Event()
        self.on_drained: Callable[[], None] = lambda: None
        self.open_connections: Callable[[], int] = lambda: 0
        self._engine_factory, self._store_factory = engine_factory, store_factory
        self._jobs: Jobs | None = None
        self._pinging, self._pinged, self._not_reached = asyncio.Lock(), -math.inf, cast(SteeringError | None, None)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the store, then the engine in the background, so that the port opens at once; closes in reverse."""
        self.interrupted = asyncio.get_running_loop().create_future()
        store = await self._store_factory(self.settings)
        self._jobs = self.add(Jobs(store, new_server_id(), self.settings))
        synchronization = Synchronization(
            store, self.settings, self.renew, lambda: self.keys.store_use(store), self.metrics,
            keys=lambda: self.keys.refresh(store),
            default_steering=lambda: self._refresh_loaded(self.default_steering.refresh),
            documents=lambda: self._refresh_loaded(self.policy.refresh),
            jobs=self.renew,
        )  # fmt: skip
        tasks: list[asyncio.Task[None]] = []
        try:
            await self.renew()
            await prune(store, self.settings)
            await _read_first(self.keys.refresh(store))
            loops = (self._load_and_watch(store), synchronization.run(), self._announce(), self.metrics.measure_loop())
            tasks += map(asyncio.create_task, loops)
            yield
        finally:
            for task in tasks:
                await ended(task)
            await self._jobs.close()
            if self._engine is not None:
                await self._engine.close()
            gc.unfreeze()
            await store.close()

    async def renew(self) -> None:
        """Renews the lease of this server, and learns how many share the limits of keys. Raises StoreUnavailable."""
        await self.jobs.renew()
        self.rate_limits.servers = self.jobs.servers
        self.metrics.lease_renewed.set_to_current_time()

    async def _refresh_loaded(self, refresh: Callable[[Store, Engine], Awaitable[None]]) -> None:
        await self.loaded.wait()
        if self._engine is not None:
            await refresh(self.store, self._engine)

    async def _announce(self) -> None:
        """Logs `ready` once the server is; until then each new reason why it is not."""
        await self.loaded.wait()
        logged = ""
        while (engine := self._engine) is not None:
            try:
                await self.check_ready()
            except SteeringError as error:
                if error.message != logged:
                    log.warning("not_ready", code=error.code, reason=error.message)
                    logged = error.message
            else:
                info = engine.info
                log.info("ready", model=info.name, device=info.device, executor=engine.stats().executor)
                return
            await asyncio.sleep(READY_PAUSE_SECONDS)

    async def _load_and_watch(self, store: Store) -> None:
        """Loads the model, then checks the engine until the server stops."""
        try:
            loaded = await run_in_thread(self._engine_factory, self.settings)
            engine = self._engine = GovernedEngine(loaded, self.policy)
            await _read_first(self.policy.refresh(store, engine))
            await _read_first(self.default_steering.refresh(store, engine))
            gc.freeze()  # loaded objects live until the end; to traverse them would stop the loop for 0.25 s
        except Exception as error:
            if isinstance(error, SteeringError) and error.__cause__ is None:
                log.error("model_load_failed", code=error.code, reason=error.message)  # noqa: TRY400 - the sentence says it all
            else:
                log.exception("model_load_failed")
            self.load_failure = public_error(error)
            return
        finally:
            self.loaded.set()
        executor = engine.stats().executor
        while True:
            await asyncio.sleep(self._watchdog.pause)
            stats = engine.stats()
            self._watchdog.check(stats)
            failure = self._watchdog.failure(stats)
            if failure is not None:
                log.error("engine_failed", reason=failure.message, last_turn_age=round(stats.last_turn_age, 1))
                self._interrupt(failure)
                self.engine_failed.set()
                return
            if stats.executor != executor:
                executor = stats.executor
                log.info("executor_changed", executor=executor)

    @property
    def store(self) -> Store:
        """The store. Raises NotReady outside the lifespan."""
        return self.jobs.store

    @property
    def jobs(self) -> Jobs:
        """The jobs. Raises NotReady outside the lifespan."""
        if self._jobs is None:
            raise NotReady("the store is not open yet")
        return self._jobs

    async def check_ready(self) -> None:
        """Raises the reason why the server is not ready: draining, loading, a dead engine, keys, policy or default
        steering that have not been read, an invalid policy, no store."""
        if self.stopping:
            raise Draining("the server is stopping; use another")
        self.check_open()
        _ = self.engine  # raises while it loads, and once it has died
        _ = self.policy.active  # raises until it was read, and while it cannot be applied
        _ = self.default_steering.resolved_in(SHARED), self.keys.required  # raise until they were read
        await self._check_store()

    async def _check_store(self) -> None:
        """Raises StoreUnavailable. The store is asked once in PING_SECONDS, however many probes, which need no key, there are."""
        async with self._pinging:
            if time.monotonic() - self._pinged >= PING_SECONDS:
                try:
                    await self.store.ping()
                    self._not_reached = None
                except SteeringError as error:
                    self._not_reached = error
                self._pinged = time.monotonic()
        if (failure := self._not_reached) is not None:
            raise type(failure)(failure.message, param=failure.param)

    async def scraped(self) -> bytes:
        """Returns the metrics, readiness and open connections as of now, without those of keys that no longer exist."""
        metrics = self.metrics
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                await self.check_ready()
            metrics.not_ready = None
        except TimeoutError:
            metrics.not_ready = StoreUnavailable.code
        except SteeringError as error:
            metrics.not_ready = error.code
        metrics.connections.set(self.open_connections())
        metrics.keep_keys(self.keys.names)
        return metrics.render()

    async def drain(self) -> None:
        """Refuses new work, waits for running requests until the deadline, then ends the rest with an error. Jobs are
        interrupted at once. One deadline covers both: writing the record of a job may wait for the database."""
        self.draining = True
        jobs = asyncio.ensure_future(self._jobs.close() if self._jobs is not None else asyncio.sleep(0))
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await asyncio.gather(asyncio.shield(jobs), self.idle.wait())
        except TimeoutError:
            log.warning("drain_deadline_passed", requests=self.in_flight, jobs_closed=jobs.done())
            self._interrupt(Draining("the server stopped before this request had ended"))
        self.on_drained()

    def _interrupt(self, reason: SteeringError) -> None:
        if not self.interrupted.done():
            self.interrupted.set_result(reason)


async def _read_first(reading: Awaitable[None]) -> None:
    """Reads something for the first time. What fails is read again by Synchronization; requests that need it are refused until then."""
    try:
        await reading
    except SteeringError as error:
        log.warning("not_read_at_start", code=error.code, reason=error.message)
