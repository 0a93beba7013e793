"""EngineLoop: the thread that owns a model. Work comes in through an inbox, results leave through each request's stream."""

import threading
from collections.abc import Callable, Collection
from collections.abc import Sequence as Rows
from time import perf_counter
from traceback import format_exc
from typing import TypeVar

import structlog

from steering.engine.api import EngineStats, Finish, TokenEvent
from steering.engine.options import EngineLimits
from steering.engine.transformers import captures
from steering.engine.transformers.background import BackgroundQueue, BackgroundTask
from steering.engine.transformers.delivery import Delivery, as_steering_error
from steering.engine.transformers.inbox import Inbox
from steering.engine.transformers.runner import ModelRunner, PassResult
from steering.engine.transformers.sampling.detokenizer import advance, finish
from steering.engine.transformers.sampling.sampler import Sampled, sample
from steering.engine.transformers.scheduler import Scheduler
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.unembedding import Unembedding
from steering.errors import EngineDead, NonfiniteActivations, OutOfMemory, SteeringError

log = structlog.get_logger()
T = TypeVar("T")


class EngineLoop:
    """One turn after another: choose rows, run them, note the results, hand back what ended.

    eos_ids: the tokens that end an answer. Everything but `submit`, `arrive`, `stats` and `close` runs on the thread.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        ends: Unembedding,
        eos_ids: Collection[int],
        limits: EngineLimits,
    ) -> None:
        self._runner, self._scheduler, self._ends = runner, scheduler, ends
        self._eos_ids = eos_ids
        self._background = BackgroundQueue()
        self._inbox = Inbox(lambda: scheduler.waiting_live, limits.max_waiting)
        self._delivery = Delivery()
        self._counts = {"steps": 0, "generated": 0, "prompt": 0, "cached": 0}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stats(self) -> EngineStats:
        """What it does now."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting + len(self._inbox),
            steps=self._counts["steps"],
            generated_tokens=self._counts["generated"],
            prompt_tokens=self._counts["prompt"],
            cached_tokens=self._counts["cached"],
            alive=not self._inbox.ended and self._thread.is_alive(),
            executor=self._runner.executor.name,
        )

    def close(self) -> None:
        """Ends the thread after the pass that runs; waits for it. Harmless when repeated."""
        self._inbox.close()
        self._thread.join()

    def submit(self, work: Rows[Sequence | BackgroundTask], *, bounded: bool) -> None:
        """See `Inbox.put`."""
        self._inbox.put(work, bounded=bounded)

    def arrive(self, take: Callable[[], None]) -> None:
        """Something faster is ready; the loop takes it between two passes, in the order of arrival."""
        self._inbox.arrive(take)

    def _run(self) -> None:
        error: SteeringError = EngineDead("the engine was closed")
        try:
            while self._collect_inbox():
                self._step()
        except Exception:
            log.error("engine_died", traceback=format_exc())  # noqa: TRY400 - as text, without local variables
            error = EngineDead("the engine has stopped after a defect")
        finally:
            everyone = [*self._inbox.end(), *self._scheduler.everyone(), *self._background.everyone()]
            for one in everyone:
                one.outbox.append(error)
            self._delivery.now(everyone)
            self._runner.close()

    def _collect_inbox(self) -> bool:
        """Waits until there is something to do; False when the engine is to close."""
        work = self._inbox.collect(busy=self._scheduler.busy or len(self._background) > 0)
        for one in work or ():
            if isinstance(one, BackgroundTask):
                if not self._background.enqueue(one):
                    self._delivery.now([one])
            else:
                self._scheduler.enqueue(one)
        return work is not None

    def _step(self) -> None:
        """One turn: drop who left, let in who waits, compute prompts, decode a token for every row, hand out results."""
        for take in self._inbox.arrivals():
            take()
        self._scheduler.drop_closed()
        self._with_room(self._scheduler.admit)
        work = self._with_room(self._scheduler.prompts) or []
        if work:
            self._delivery.flush()
            self._counts["cached"] += sum(s.cached for s, _ in work if s.computed == s.cached)
            count = sum(amount for _, amount in work)
            self._counts["prompt"] += count
            self._scheduler.pace.computed(count, self._pass(lambda: self._runner.prefill(work), [s for s, _ in work]))
        rows, idle = self._with_room(self._scheduler.rows) or ([], [])
        present = [sequence for sequence in rows if sequence is not None]
        if present:
            self._scheduler.pace.decoded(self._pass(lambda: self._runner.decode(rows, idle), present))
        if self._background.due(busy=self._scheduler.busy):
            self._delivery.flush()
            self._delivery.now([self._background.run()])
        self._counts["steps"] += 1

    def _with_room(self, ask: Callable[[], T]) -> T | None:
        """The scheduler's answer. Where memory ends while it makes room, everyone who runs is told, and the cache begins
        anew; the engine goes on."""
        try:
            return ask()
        except Exception as error:
            failure = as_steering_error(error)
            if not isinstance(failure, OutOfMemory):
                raise
            ended = list(self._scheduler.running.values())
            for sequence in ended:
                self._end(sequence, failure, wipe=True)
            self._runner.cache.clear()
            self._delivery.now(ended)
            return None

    def _pass(self, forward: Callable[[], PassResult], sequences: list[Sequence]) -> float:
        """Runs a pass and notes its results; the seconds it took. A failure ends those who took part, and nobody else."""
        began = perf_counter()
        try:
            result = forward()
            for sequence in sequences:
                if sequence.generated == 0:  # a prompt pass: what it computed may serve others at once
                    self._scheduler.prefix.publish(sequence)
            tokens = sample(result.logits, result.sequences, self._runner.executor.argmax)
            for sequence, chosen in zip(result.sequences, tokens, strict=True):
                self._note(sequence, chosen, result.readouts.get(sequence.id, {}))
            for sequence in sequences:
                if sequence.capture is not None and not sequence.prefilling:
                    self._finish_capture(sequence)
        except Exception as error:
            failure = as_steering_error(error)
            for sequence in sequences:
                self._end(sequence, failure, wipe=True)
        seconds = perf_counter() - began
        self._delivery.after(sequences, seconds)
        return seconds

    def _finish_capture(self, sequence: Sequence) -> None:
        self._scheduler.release(sequence, wipe=not sequence.plan.empty)
        try:
            sequence.outbox.append(captures.result(sequence, self._ends.embed))
        except SteeringError as error:  # its own numbers, nobody else's
            sequence.outbox.append(error)

    def _note(self, sequence: Sequence, chosen: Sampled, readout: dict[str, float]) -> None:
        """One row's token: into the sequence, and out as an event."""
        if not chosen.finite:
            message = "steering drove the activations out of range: logits are not finite; lower the strength"
            self._end(sequence, NonfiniteActivations(message), wipe=True)
            return
        if chosen.token_id in self._eos_ids and not sequence.sampling.ignore_eos:
            self._finish(sequence, "stop", finish(sequence))
            return
        index = sequence.generated
        sequence.ids.append(chosen.token_id)
        self._counts["generated"] += 1
        text, stopped = advance(sequence, chosen.token_id)
        sequence.outbox.append(TokenEvent(index, chosen.token_id, text, chosen.logprob, chosen.top_logprobs, readout))
        if stopped:
            self._finish(sequence, "stop", "")
        elif sequence.generated >= sequence.sampling.max_tokens:
            self._finish(sequence, "length", finish(sequence))

    def _finish(self, sequence: Sequence, reason: str, text: str) -> None:
        self._scheduler.release(sequence)
        finish_ = Finish(
            reason="stop" if reason == "stop" else "length",
            prompt_tokens=sequence.prompt_length,
            completion_tokens=sequence.generated,
            cached_tokens=sequence.cached,
            steering=sequence.dose.report(),
        )
        sequence.outbox.append(TokenEvent(sequence.generated, -1, text, finish=finish_))

    def _end(self, sequence: Sequence, error: SteeringError, *, wipe: bool) -> None:
        self._scheduler.release(sequence, wipe=wipe)
        sequence.outbox.append(error)
