"""EngineLoop: the turns of the thread that owns a model. Work comes in through an inbox, results leave through streams."""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic, perf_counter
from traceback import format_exc

import structlog

from steering.engine import captures
from steering.engine.answers import AnswerWriter, Sampled, finish_event
from steering.engine.api import EngineStats
from steering.engine.options import EngineLimits
from steering.engine.transformers.background import BackgroundQueue
from steering.engine.transformers.delivery import Delivery, as_steering_error
from steering.engine.transformers.inbox import Inbox
from steering.engine.transformers.memory.paged_cache import Pretouch
from steering.engine.transformers.request import BackgroundTask, Request
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.sampling.sampler import sample
from steering.engine.transformers.scheduler import Scheduler, Work
from steering.errors import EngineDead, InternalError, OutOfMemory, SteeringError

log = structlog.get_logger()
MOST_FAILED = 10
"""Passes that fail with an unknown error, one after the other: then the engine ends, since it would answer nothing any more."""


class EngineLoop:
    """One turn after another: admit, choose the tokens of a pass, run it, sample, deliver.

    Every request that was accepted gets exactly one terminal item (a finish, a capture, a result or an error), also when the loop
    dies, wherever it does: at every moment it is in the inbox, in `_arrived`, in `_open`, among the background tasks or in `_ended`,
    all of which `end` goes through. An error in a pass ends the requests of that pass; an error in what is done for one request ends that one.
    Where a pass does not fit into memory, its requests are computed again, once, half as many at a time. An error of the device, or
    MOST_FAILED passes in a row that fail, end the loop.
    eos_ids: the tokens that end an answer. `submit` and `call` are `put` and `call` of the inbox; they, `stats` and `close` may be
    called by any thread.
    """

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, eos_ids: Collection[int], limits: EngineLimits
    ) -> None:
        self._runner, self._scheduler = runner, scheduler
        self._background = BackgroundQueue()
        pretouch = Pretouch(runner.cache, scheduler.pool, limits.pretouch_bytes)
        self._inbox = Inbox(limits, self._waiting, idle=pretouch.step)
        self.submit, self.call = self._inbox.put, self._inbox.call
        self._delivery = Delivery()
        self._answers = AnswerWriter(eos_ids)
        self._arrived: list[Request | BackgroundTask] = []
        """Taken from the inbox; not all may be in a queue."""
        self._open: dict[int, Request] = {}
        """Requests without a terminal item so far."""
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
            waiting=self._waiting(False) + self._inbox.count(background=False),
            steps=self._turns,
            generated_tokens=self._answers.tokens,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            alive=not self._inbox.ended and self._thread.is_alive(),
            executor=self._runner.executor.name,
            background_running=scheduler.running_of(background=True) + len(self._background),
            background_waiting=self._waiting(True) + self._inbox.count(background=True),
            blocks_total=pool.count,
            blocks_used=pool.used,
            blocks_cached=pool.cached,
            preemptions=scheduler.preemptions,
            admitted=scheduler.live.admitted,
            queue_seconds=scheduler.live.wait_seconds,
            busy=began is not None,
            last_turn_age=0.0 if began is None else monotonic() - began,
        )

    def _waiting(self, background: bool) -> int:
        return len(self._scheduler.background if background else self._scheduler.live)

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
        for one in left:
            one.end(error)
        self._delivery.now([*self._ended, *left])

    def collect(self) -> bool:
        """Takes new work, waiting for some where there is nothing to do; False when the loop is to end."""
        busy = self._scheduler.busy or bool(len(self._background))
        if not busy:
            self._turn_began = None
        work = self._inbox.collect(busy=busy)
        self._arrived = work or []
        for one in self._arrived:
            if isinstance(one, Request):
                self._open[one.id] = one
                self._scheduler.enqueue(one)
            elif not self._background.enqueue(one):
                self._delivery.now([one])
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
        began = perf_counter()
        failure = None
        try:
            self._runner.cache.zero(self._scheduler.pool.unclean)
            self._scheduler.pool.cleaned()
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
                readout, monitored = readouts.get(request, {}), scores.get(request, ())
                self._for_one(request, self._write, token, readout, monitored)
            for request in requests:
                if request.capture is not None and not request.remaining:
                    self._for_one(request, self._finish_capture)
        seconds = perf_counter() - began
        self._scheduler.budget.observe(prompt_tokens, streams, seconds, calls=calls)
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
        found = captures.result(request, self._runner.unembedding.embed)
        # what was read is finite; what steering did in layers that were not read, nobody has checked
        self._scheduler.release(request, dirty=not request.plan.empty)
        self._end_one(request, found)

    def _fail(self, request: Request, error: SteeringError) -> None:
        """Ends a request with an error."""
        self._scheduler.release(request, dirty=True)
        self._end_one(request, error)

    def _end_one(self, request: Request, item: object) -> None:
        """Writes a request's terminal item, unless it has one. If the loop dies before it is sent, `end` sends it."""
        if request.id in self._open:
            self._ended.append(request)
            request.end(item)
            del self._open[request.id]
