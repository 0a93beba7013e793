"""ServerState: what every request finds of its server, without a noun of the API."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from starlette.requests import Request

from app.core.admission import Admission, Budget, Key, RateLimits
from app.core.errors import Draining
from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.core.watchdog import Watchdog
from steering.engine.api import Engine, EngineStats
from steering.errors import NotReady, SteeringError
from steering.plan.resolve import RecentPlans
from steering.store.store import Store

Part = TypeVar("Part")


class ServerState(ABC):
    """One server's settings, limits and metrics, its engine and store, and whether it drains. `state[ApiKeys]` is its part of that class.

    `app.state` adds the parts and opens everything, so that nothing here knows which nouns the API has.
    identify: returns the caller of a request. Raises InvalidApiKey, NotReady.
    record: records a request that changed something, or may have; see `app.api.keys.record_change`.
    """

    metrics: Metrics
    identify: Callable[[Request], Awaitable[Key]]
    record: Callable[..., Awaitable[None]]
    interrupted: "asyncio.Future[SteeringError]"  # resolves to the error that ends every running request

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rate_limits = RateLimits()
        rows, memory = settings.max_running + settings.max_waiting, settings.memory_megabytes << 20
        self.rows = Budget(rows, f"all {rows} rows are in use or waiting; try again shortly")
        self.memory = Budget(memory, "the memory for running requests is in use; try again shortly")
        self.job_memory = Budget(memory // 2, "the memory for jobs is in use; wait for one to end")
        self.plans = RecentPlans()
        self.draining = False
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.load_failure: SteeringError | None = None
        self._engine: Engine | None = None
        self._watchdog = Watchdog(settings.watchdog_seconds)
        self._parts: dict[type, object] = {}

    def __getitem__(self, kind: type[Part]) -> Part:
        """Returns the part of a class. Raises NotReady for one that is not there outside the lifespan."""
        if kind not in self._parts:
            raise NotReady("the server has not started yet")
        return cast(Part, self._parts[kind])

    def add(self, part: Part) -> Part:
        """Adds a part, and returns it."""
        self._parts[type(part)] = part
        return part

    @property
    def engine(self) -> Engine:
        """The engine, under the policy. Raises NotReady while it loads, the reason when loading failed, EngineDead when it died or hangs."""
        if self._engine is None:
            raise self.load_failure or NotReady("the model is still loading")
        self.check_alive()
        return self._engine

    @property
    @abstractmethod
    def store(self) -> Store:
        """The store. Raises NotReady outside the lifespan."""

    def stats(self) -> EngineStats | None:
        """Returns the engine's statistics; None before it is loaded."""
        return None if self._engine is None else self._engine.stats()

    def check_alive(self) -> None:
        """Raises EngineDead once the engine has died or hangs: only a restart helps."""
        stats = self.stats()
        failure = None if stats is None else self._watchdog.failure(stats)
        if failure is not None:
            raise failure

    @abstractmethod
    async def check_ready(self) -> None:
        """Raises the reason why the server is not ready."""

    @abstractmethod
    async def scraped(self) -> bytes:
        """Returns the metrics as of now."""

    def check_open(self) -> None:
        """Raises Draining once the server has been asked to stop."""
        if self.draining:
            raise Draining("the server is stopping; try another or try again later")

    @contextmanager
    def count_request(self) -> Iterator[Admission]:
        """Counts a request while it is being answered, and returns its rows and memory afterwards."""
        admission = Admission(self.rows, self.memory, self.job_memory, self.rate_limits)
        self.in_flight += 1
        self.idle.clear()
        self.metrics.in_flight.inc()
        try:
            yield admission
        finally:
            admission.close()
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()
            self.metrics.in_flight.dec()


def state_of(request: Request) -> ServerState:
    """Returns the state of the server that received a request."""
    return cast(ServerState, request.app.state.steering)
