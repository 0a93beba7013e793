"""EngineLoop: the turns of the thread that owns a model. Work comes in through an inbox, results leave through streams."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from time import monotonic, perf_counter
from traceback import format_exc, format_exception

import structlog
import torch

from steering.engine import captures
from steering.engine.answers import AnswerWriter, Sampled, Stream, finish_event
from steering.engine.api import EngineStats
from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.paged_cache import Pretouch
from steering.engine.transformers.request import BackgroundTask, Request
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.sampling import sample
from steering.engine.transformers.scheduler import Scheduler, Work
from steering.errors import EngineDead, InternalError, OutOfMemory, Overloaded, SteeringError
from steering.threads import release_thread_pool

log = structlog.get_logger()
IDLE_SECONDS = 0.05
"""After this time without work the thread does what it does when idle, and then frees its OpenMP pool, so that another engine of the
process is not slowed down by it (see steering/threads.py). To make the pool again takes 0.1 ms."""
MANY = 16  # requests in a pass from which on their tokens may be held
INTERVAL_SECONDS = 0.04  # how long tokens are held at most, and until the pass that runs then has ended
MAX_WAITING = 64
"""Background tasks in the queues; one more is refused, so that requests for them cannot fill the memory."""
SHARE = 0.25  # share of the time that background tasks may take while requests run
SLICE_SECONDS = 0.02  # pieces run one after the other until this much time is used; one piece may take longer
PATIENT_TURN = 4  # every fourth slice is that of a task that is not urgent, so that urgent ones cannot starve it
MOST_FAILED = 10
"""Passes that fail with an unknown error, one after the other: then the engine ends, since it would answer nothing any more."""


class Inbox:
    """Hands work from callers' threads to the engine's thread, which waits here when there is nothing to do. Everything but
    `collect` may be called by any thread."""

    def __init__(
        self, limits: EngineLimits, waiting: Callable[[Request], int], idle: Callable[[], bool] = lambda: False
    ) -> None:
        """waiting: see `Scheduler.waiting_of`. idle: called by `collect` again and again while there is no work, until it returns False;
        takes milliseconds."""
        self._limits, self._waiting, self._idle = limits, waiting, idle
        self._work: list[Request | BackgroundTask] = []
        self._calls: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self.ended = False

    def count(self, *, background: bool, client: str | None = None) -> int:
        """How many live or background requests are in the inbox. client: those of one alone."""
        requests = [item for item in self._work if isinstance(item, Request) and item.background == background]
        return len(requests) if client is None else sum(one.client == client for one in requests)

    def put(self, work: Sequence[Request | BackgroundTask], *, begun: bool = False) -> None:
        """Hands over work of one call. Raises EngineDead; Overloaded when as many requests wait as may: live ones, or background ones of
        one client. begun: whether work of this call was accepted before, so that it is not refused."""
        with self._wake:
            if self._closing or self.ended:
                raise EngineDead("the engine has stopped")
            if work and isinstance(work[0], Request) and not begun:
                self._check_room(work[0])
            self._work.extend(work)
            self._wake.notify()

    def _check_room(self, first: Request) -> None:
        if first.background:
            most, kind = self._limits.max_background_waiting, "texts or background requests of this caller"
        else:
            most, kind = self._limits.max_waiting, "requests"
        client = first.client if first.background else None
        waiting = self._waiting(first) + self.count(background=first.background, client=client)
        if waiting >= most:
            raise Overloaded(f"{waiting} {kind} are waiting, and at most {most} may; try again shortly")

    def call(self, function: Callable[[], None]) -> None:
        """Has the engine's thread call a function between two passes, in the order of these calls."""
        with self._wake:
            self._calls.append(function)
            self._wake.notify()

    def calls(self) -> list[Callable[[], None]]:
        """Takes the functions to call."""
        with self._wake:
            calls, self._calls = self._calls, []
            return calls

    def collect(self, *, busy: bool) -> list[Request | BackgroundTask] | None:
        """Takes the work that came; waits for some unless `busy`. None once it was closed; `end` gives back what is left then."""
        if not busy:
            self._wait()
        with self._wake:
            return None if self._closing else self._taken()

    def _taken(self) -> list[Request | BackgroundTask]:
        work, self._work = self._work, []
        return work

    def _wait(self) -> None:
        with self._wake:
            if self._wake.wait_for(self._has_work, IDLE_SECONDS):
                return
        while self._idle():
            if self._has_work():
                return
        release_thread_pool()
        with self._wake:
            self._wake.wait_for(self._has_work)

    def _has_work(self) -> bool:
        return bool(self._work or self._calls or self._closing)

    def close(self) -> None:
        """Accepts nothing more, and has the thread end."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def end(self) -> list[Request | BackgroundTask]:
        """Returns what was left when the thread ended; nothing more is accepted."""
        with self._wake:
            self.ended = True
            return self._taken()


class Delivery:
    """Sends outboxes to the event loops that wait for them.

    Waking callers costs nearly as much for one token as for several. With MANY requests their tokens are therefore sent at
    intervals; the first token of an answer and its end are sent at once. The idea is that of vLLM's `--stream-interval`.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._held: dict[Request, None] = {}
        self._sent = -INTERVAL_SECONDS

    def after(self, requests: Sequence[Request]) -> None:
        """Sends what a pass yielded, or holds it until after a later one."""
        now = self._clock()
        due = len(requests) < MANY or now - self._sent >= INTERVAL_SECONDS
        if due:
            self._sent = now
        begun = dict.fromkeys([*self._held, *requests])
        self._held = {} if due else {request: None for request in begun if request.going_on}
        self.now([request for request in begun if request not in self._held])

    def flush(self) -> None:
        """Sends what was held: something longer comes before the next pass."""
        self.now(list(self._held))
        self._held = {}

    @staticmethod
    def now(senders: Sequence[Request | BackgroundTask]) -> None:
        """Sends outboxes, with one wake-up of each event loop, however many senders there are.

        Whatever is raised, an item is sent or still in its outbox.
        """
        by_loop: dict[asyncio.AbstractEventLoop, dict[Request | BackgroundTask, list[object]]] = {}
        for sender in senders:
            if sender.outbox:
                by_loop.setdefault(sender.stream.loop, {})[sender] = []  # its next outbox
        for loop, empty in by_loop.items():
            try:
                loop.call_soon_threadsafe(_receive, [(sender.stream, sender.outbox) for sender in empty])
            except RuntimeError:  # the loop is gone, and with it everyone who waited
                for sender in empty:
                    sender.stream.closed = True
            for sender, outbox in empty.items():
                sender.outbox = outbox


def _receive(parcels: list[tuple[Stream, list[object]]]) -> None:
    for stream, items in parcels:
        stream.receive(items)


def as_steering_error(error: Exception) -> SteeringError:
    """Returns the error that a caller may see. The traceback is dropped, since it keeps tensors alive.

    Raises EngineDead after an error of the device: its context computes nothing any more, as after an illegal memory access.
    """
    if isinstance(error, SteeringError):
        return error
    text, memory = str(error).lower(), isinstance(error, torch.OutOfMemoryError | MemoryError)
    if memory or "out of memory" in text or "can't allocate" in text:
        return OutOfMemory("the pass did not fit into memory")
    # as text: renderers that show local variables would print prompts
    log.error("pass_failed", traceback="".join(format_exception(error)))
    if isinstance(error, torch.AcceleratorError):
        raise EngineDead("the device has failed, and computes nothing for this process any more") from None
    return InternalError("the forward pass failed")


class BackgroundQueue:
    """Tasks that run in small pieces between the passes of live requests: urgent ones first, but for every PATIENT_TURN-th slice,
    each kind first come first served, so that no task overtakes one of its kind that has begun."""

    def __init__(self) -> None:
        self._queues: dict[bool, deque[BackgroundTask]] = {True: deque(), False: deque()}
        self._next_at = 0.0
        self._slices = 0

    @property
    def tasks(self) -> list[BackgroundTask]:
        """Returns those that have not ended, in the order in which they would be advanced."""
        urgent_first = self._slices % PATIENT_TURN != PATIENT_TURN - 1
        return [*self._queues[urgent_first], *self._queues[not urgent_first]]

    def __len__(self) -> int:
        """How many have not ended. Other threads ask."""
        return sum(map(len, self._queues.values()))

    def enqueue(self, task: BackgroundTask) -> bool:
        """Adds a task. Returns False where the queues are full; the task's outbox then holds Overloaded."""
        if len(self) >= MAX_WAITING:
            task.pieces.close()
            task.end(Overloaded(f"{MAX_WAITING} background tasks are waiting already; try again shortly"))
            return False
        self._queues[task.urgent].append(task)
        return True

    def due(self, *, busy: bool) -> BackgroundTask | None:
        """Returns the task that may run now. busy: requests are running, which leaves it its share of the time."""
        for task in self.tasks:
            if task.stream.closed:
                self._end(task)
        if not len(self) or (busy and perf_counter() < self._next_at):
            return None
        return self.tasks[0]

    def run(self, task: BackgroundTask) -> None:
        """Runs pieces of a task for one slice of time. An error ends that task, and no other; raises as `as_steering_error`."""
        began = perf_counter()
        try:
            while perf_counter() - began < SLICE_SECONDS and not task.stream.closed:
                if (progress := next(task.pieces)) is not None:
                    task.outbox.append(progress)
        except Exception as end:
            task.end(end.value if isinstance(end, StopIteration) else as_steering_error(end))
            self._end(task)
        now = perf_counter()
        self._slices += 1
        self._next_at = now + (now - began) * (1 - SHARE) / SHARE

    def _end(self, task: BackgroundTask) -> None:
        task.pieces.close()
        self._queues[task.urgent].remove(task)


class EngineLoop:
    """One turn after another: admit, choose the tokens of a pass, run it, sample, deliver.

    Every request that was accepted gets exactly one terminal item (a finish, a capture, a result or an error), also when the loop
    dies, wherever it does: at every moment it is in the inbox, in `_arrived`, in `_open`, among the background tasks or in `_ended`,
    all of which `end` goes through. An error in a pass ends the requests of that pass; an error in what is done for one request ends
    that one. Where a pass does not fit into memory, its requests are computed again, once, half as many at a time. An error of the
    device, or MOST_FAILED passes in a row that fail, end the loop.

    eos_ids: the tokens that end an answer.
    submit, call: of the inbox; they, `stats` and `close` may be called by any thread.
    """

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, eos_ids: Collection[int], limits: EngineLimits
    ) -> None:
        self._runner, self._scheduler = runner, scheduler
        self._background = BackgroundQueue()
        pretouch = Pretouch(runner.cache, scheduler.pool, limits.pretouch_bytes)
        self._inbox = Inbox(limits, scheduler.waiting_of, idle=pretouch.step)
        self.submit, self.call = self._inbox.put, self._inbox.call
        self._delivery = Delivery()
        self._answers = AnswerWriter(eos_ids)
        self._arrived: list[Request | BackgroundTask] = []  # taken from the inbox; not all may be in a queue
        self._open: dict[int, Request] = {}  # requests without a terminal item so far
        self._ended: list[Request | BackgroundTask] = []
        """Those that may have got theirs in this turn; not all may have been sent."""
        self._turns = self._prompt_tokens = self._failed_passes = 0
        self._turn_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread. Without it, `turn` may be called by a thread that owns the model itself."""
        self._thread.start()

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        scheduler, pool, began = self._scheduler, self._scheduler.pool, self._turn_began
        return EngineStats(
            running=scheduler.running_of(background=False),
            waiting=len(scheduler.live) + self._inbox.count(background=False),
            steps=self._turns,
            generated_tokens=self._answers.tokens,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            alive=not self._inbox.ended and self._thread.is_alive(),
            executor=self._runner.executor.name,
            kernels=self._runner.executor.kernels,
            weight_bytes=self._runner.executor.weight_bytes,
            background_running=scheduler.running_of(background=True) + len(self._background),
            background_waiting=len(scheduler.background) + self._inbox.count(background=True),
            blocks_total=pool.count,
            longest=pool.count * BLOCK,
            blocks_used=pool.used,
            blocks_cached=pool.cached,
            preemptions=scheduler.preemptions,
            admitted=scheduler.live.admitted,
            queue_seconds=scheduler.live.wait_seconds,
            busy=began is not None,
            last_turn_age=0.0 if began is None else monotonic() - began,
        )

    def close(self) -> None:
        """Ends the thread after the pass that runs; waits for it. Harmless when repeated."""
        self._inbox.close()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        error: SteeringError = EngineDead("the engine was closed")
        try:
            while self.collect():
                self.turn()
        except EngineDead as dead:
            log.error("engine_died", reason=dead.message)  # noqa: TRY400 - what failed is in the log already
            error = dead
        except Exception:
            log.error("engine_died", traceback=format_exc())  # noqa: TRY400 - as text, without local variables
            error = EngineDead("the engine has stopped after a defect")
        finally:
            self._turn_began = None
            self.end(error)
            self._runner.close()

    def end(self, error: SteeringError) -> None:
        """Gives every open request its terminal item. Nothing is accepted any more."""
        left = [*self._inbox.end(), *self._arrived, *self._open.values(), *self._background.tasks]
        for work in left:
            work.end(error)
        self._delivery.now([*self._ended, *left])

    def collect(self) -> bool:
        """Takes new work, waiting for some where there is nothing to do; False when the loop is to end."""
        busy = self._scheduler.busy or bool(len(self._background))
        if not busy:
            self._turn_began = None
        work = self._inbox.collect(busy=busy)
        self._arrived = work or []
        for item in self._arrived:
            if isinstance(item, Request):
                self._open[item.id] = item
                self._scheduler.enqueue(item)
            elif not self._background.enqueue(item):
                self._delivery.now([item])
        self._arrived = []
        return work is not None

    def turn(self) -> None:
        """Runs one turn."""
        self._turn_began = monotonic()
        for function in self._inbox.calls():
            function()
        for request in self._scheduler.drop_closed():
            self._open.pop(request.id, None)
        for request in self._scheduler.admit():
            self._for_one(request, self._runner.injector.admit)
        if work := self._scheduler.schedule():
            self._pass(work)
        if (task := self._background.due(busy=self._scheduler.busy)) is not None:
            self._delivery.flush()
            self._runner.threads.settle()
            self._ended.append(task)
            self._background.run(task)
            self._delivery.now([task])
        self._ended.clear()
        self._turns += 1

    def _for_one(self, request: Request, action: Callable[..., None], *arguments: object) -> None:
        """Does something for one request; an error ends it, and no other."""
        try:
            action(request, *arguments)
        except Exception as error:
            self._fail(request, as_steering_error(error))
            self._delivery.now([request])

    def _pass(self, work: Work) -> None:
        """Runs one pass and hands on what it yields."""
        requests = [request for request, _ in work]
        streams = sum(not request.prefilling for request in requests)
        prompt_tokens = sum(count for request, count in work if request.prefilling)
        calls = sum(count * request.prompt_calls for request, count in work if request.prefilling)
        chosen_among = sum(request.positions_to_choose for request in requests)
        began = perf_counter()
        failure = None
        try:
            self._runner.cache.zero(self._scheduler.pool.unclean)
            self._scheduler.pool.unclean.clear()
            result = self._runner.run(work)
            chosen = sample(result.logits, result.requests, self._runner.executor.sampling_kernel)
            readouts, scores = result.readouts(), result.monitor_scores()
        except Exception as error:
            failure = as_steering_error(error)
        if failure is not None:  # behind the handler, since the error keeps the tensors of the pass alive
            self._failed(requests, failure)
        else:
            self._failed_passes = 0
            self._prompt_tokens += prompt_tokens
            for request in requests:
                if request.capture is not None or not request.generated:
                    self._scheduler.index.register(request)
            for request, token in zip(result.requests, chosen, strict=True):
                self._for_one(request, self._write, token, readouts.get(request, {}), scores.get(request, ()))
            for request in requests:
                if request.capture is not None and not request.remaining:
                    self._for_one(request, self._finish_capture)
        self._scheduler.budget.observe(prompt_tokens + chosen_among, streams, perf_counter() - began, calls=calls)
        self._delivery.after(requests)

    def _failed(self, requests: Sequence[Request], failure: SteeringError) -> None:
        """Ends the requests of a pass that failed, or has them computed again in smaller passes. Raises EngineDead."""
        if isinstance(failure, InternalError):
            self._failed_passes += 1
            if self._failed_passes == MOST_FAILED:
                raise EngineDead(f"{MOST_FAILED} forward passes have failed one after the other")
        again: list[Request] = []
        if isinstance(failure, OutOfMemory):
            self._runner.free_memory()
            again = [request for request in requests if not request.computed_again]
            log.warning("pass_out_of_memory", requests=len(requests), computed_again=len(again))
        for request in requests:
            if request not in again:
                self._fail(request, failure)
        self._scheduler.compute_again(again, max(len(requests) // 2, 1))

    def _write(self, request: Request, token: Sampled, readout: Mapping[str, float], scores: Sequence[float]) -> None:
        """Adds a token to an answer, and ends the answer where it is its last."""
        event, ending = self._answers.write(request, token, readout, scores)
        if event is not None:
            request.outbox.append(event)
        if ending is not None:
            self._scheduler.release(request)
            self._end_one(request, finish_event(request, ending))

    def _finish_capture(self, request: Request) -> None:
        index, capture = captures.result(request, self._runner.unembedding.embed)
        # only captured layers are checked for NaN, not what steering did in the others
        self._scheduler.release(request, dirty=not request.plan.empty)
        self._end_one(request, (index, replace(capture, steering=request.doses.report())))

    def _fail(self, request: Request, error: SteeringError) -> None:
        self._scheduler.release(request, dirty=True)
        self._end_one(request, error)

    def _end_one(self, request: Request, item: object) -> None:
        """Writes a request's terminal item, unless it has one. If the loop dies before it is sent, `end` sends it."""
        if request.id in self._open:
            self._ended.append(request)
            request.end(item)
            del self._open[request.id]
