"""An engine loop driven turn by turn on the test's own thread, over a cache of a few blocks, with allocations that fail."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from itertools import count
from time import monotonic
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steering.engine import captures
from steering.engine.answers import Stream
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Finish, SamplingParams, TokenEvent
from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK, BlockPool
from steering.engine.transformers.decode_graphs import CaptureGraph
from steering.engine.transformers.loop import EngineLoop
from steering.engine.transformers.paged_cache import PrefixIndex, probe_shapes
from steering.engine.transformers.request import Request
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.scheduler import Scheduler, Work
from steering.errors import SteeringError
from steering.injection.fused import HasKernel
from steering.model.loading import LoadedModel
from steering.plan.types import UNSTEERED, SteeringPlan


class FailingAllocator(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Counts the operations that allocate a tensor, and fails the chosen ones as a device does that has no memory left."""

    def __init__(self, failing: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocations, self.failed = 0, 0
        self._failing = frozenset(failing)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(result.alias_info is None for result in func._schema.returns):
            self.allocations += 1
            if self.allocations in self._failing:
                self.failed += 1
                raise torch.OutOfMemoryError("out of memory: this allocation was chosen to fail")
        return func(*args, **(kwargs or {}))


class _Immediate:
    """Stands for the event loop of callers: what is sent to them arrives at once."""

    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls the function now."""
        function(*arguments)


def open_stream() -> Stream:
    """Returns a stream whose items arrive at once."""
    return Stream(cast(asyncio.AbstractEventLoop, _Immediate()))


_ids = count()


def sequence_of(
    loaded: LoadedModel,
    tokens: tuple[int, ...],
    max_tokens: int = 1,
    *,
    plan: SteeringPlan = UNSTEERED,
    capture: CaptureSpec | None = None,
    prompt_length: int | None = None,
    first: int = 0,
    salt: str = "",
    priority: int = 0,
    **settings: Any,
) -> Request:
    """Returns a new request for exactly `max_tokens`, or a text to read; prompt_length, first: of the text, see CapturePrompt."""
    state = None
    if capture is not None:
        text = CapturePrompt(tokens, prompt_length=prompt_length, first=first)
        state = captures.begin(0, text, tokens, capture, loaded.tokenizer)
    return Request(
        id=next(_ids),
        ids=list(tokens),
        prompt_length=prompt_length or len(tokens),
        plan=plan,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **settings),
        stream=open_stream(),
        capture=state,
        decoder=loaded.tokenizer.decode_stream(tokens),
        cache_salt=salt,
        priority=priority,
    )


def runner_of(
    loaded: LoadedModel,
    blocks: int,
    capture_graph: CaptureGraph | None = None,
    *,
    edit_kernel: HasKernel | None = None,
) -> ModelRunner:
    """Returns a runner with a cache of that many blocks."""
    device = torch.device(loaded.info.device)
    shapes = probe_shapes(loaded.model, loaded.layout, device)
    position = sum(shape.position_bytes for shape in shapes)
    limits = EngineLimits(cache_bytes=blocks * BLOCK * position)
    runner = ModelRunner(
        loaded.model, loaded.layout, device, limits, capture_graph=capture_graph, edit_kernel=edit_kernel
    )
    assert runner.blocks == blocks
    return runner


class DrivenLoop:
    """One loop over a runner that outlives it. release: in the place of the runner's. clock: of the scheduler."""

    def __init__(
        self,
        runner: ModelRunner,
        loaded: LoadedModel,
        limits: EngineLimits,
        release: Callable[[Request], None] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.runner = runner
        self.pool = BlockPool(runner.blocks)
        self.index = PrefixIndex(self.pool, enabled=limits.share_prefixes, exact=runner.exact)
        release, same_pass = release or runner.release, runner.same_pass
        self.scheduler = Scheduler(limits, self.pool, self.index, release, 64, clock, same_pass=same_pass)
        self.loop = EngineLoop(runner, self.scheduler, loaded.tokenizer.eos_ids, limits)

    def turn(self, arriving: Sequence[Request] = (), allocator: FailingAllocator | None = None) -> None:
        """Hands over new work, and runs a turn if there is anything to do."""
        if arriving:
            self.loop.submit(arriving)
        if arriving or self.scheduler.busy:
            assert self.loop.collect()
            with allocator or nullcontext():
                self.loop.turn()

    def run(self, work: Work) -> None:
        """Computes a pass that the scheduler has chosen."""
        self.loop._pass(work)

    def finish(self) -> None:
        """Runs turns until nothing is left to do."""
        while self.scheduler.busy:
            self.turn()

    def assert_idle(self) -> None:
        """Nothing runs, waits or holds memory."""
        assert not self.scheduler.busy
        assert self.pool.used == 0
        assert not self.runner.injector.slots._plans
        assert not self.loop._open


def items_of(row: Request) -> list[object]:
    """Returns all that a stream has carried."""
    return list(row.stream._items)


def ends_of(row: Request) -> list[object]:
    """Returns the terminal items of a stream: at most one, and nothing after it."""
    items = items_of(row)
    ends = [item for item in items if not (isinstance(item, TokenEvent) and item.finish is None)]
    assert not ends or items[-1] is ends[-1], "something came after the end"
    return ends


def tokens_of(row: Request) -> list[int]:
    """Returns the tokens of an answer, which must not have failed."""
    return _completed(row)[0]


def finish_of(row: Request) -> Finish:
    """Returns how an answer ended, which must not have failed."""
    return _completed(row)[1]


def _completed(row: Request) -> tuple[list[int], Finish]:
    end = answer_of(row)
    assert isinstance(end, tuple)
    return end


def answer_of(row: Request) -> tuple[list[int], Finish] | Capture | SteeringError:
    """Returns what a request ended with; there must be exactly one end."""
    (end,) = ends_of(row)
    if isinstance(end, TokenEvent):
        assert end.finish is not None
        events = [item for item in items_of(row)[:-1] if isinstance(item, TokenEvent)]
        assert [event.index for event in events] == list(range(len(events)))
        return [event.token_id for event in events], end.finish
    if isinstance(end, SteeringError):
        return end
    _, capture = cast(tuple[int, Capture], end)
    return capture
