"""A scheduler whose passes are stood in for by their effect on sequences."""

from collections.abc import Sequence
from itertools import count

from steering.engine.api import SamplingParams
from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK, BlockPool, blocks_for
from steering.engine.transformers.paged_cache import PrefixIndex
from steering.engine.transformers.request import Request
from steering.engine.transformers.scheduler import Scheduler, Work
from steering.injection.rows import CaptureState
from steering.plan.types import UNSTEERED
from tests.steering.engine.loop.driven import open_stream

numbers = count()


def no_state(_: Request) -> None:
    """Releases nothing: running sequences have no state besides their blocks."""


def request(prompt: int, answer: int, *, salt: str = "", priority: int = 0) -> Request:
    """A request with a prompt like no other."""
    number = next(numbers)
    ids = [(number * 7919 + position) % 50_000 for position in range(prompt)]
    params = SamplingParams(max_tokens=answer, ignore_eos=True)
    return Request(
        id=number,
        ids=ids,
        prompt_length=prompt,
        plan=UNSTEERED,
        sampling=params,
        stream=open_stream(),
        cache_salt=salt,
        priority=priority,
    )


def text(
    length: int, salt: str = "capture", *, client: str = "", priority: int = 0, logits_from: int | None = None
) -> Request:
    """A text to read, like no other. logits_from: the first position whose logits are read too."""
    one = request(length, 1, salt=salt)
    wants = logits_from is not None
    state = CaptureState(0, (1,), (length - 1, length), logits_from or 0, reduce=True, wants_logits=wants)
    return Request(
        id=one.id,
        ids=one.ids,
        prompt_length=length,
        plan=UNSTEERED,
        sampling=one.sampling,
        stream=one.stream,
        priority=priority,
        capture=state,
        cache_salt=salt,
        client=client,
    )


class World:
    """A scheduler over a pool, whose passes add a token to every sequence that has computed all it has."""

    def __init__(self, blocks: int, limits: EngineLimits | None = None, logit_positions: int = 1 << 30) -> None:
        self.pool = BlockPool(blocks)
        index = PrefixIndex(self.pool, enabled=True, exact=True)
        self.scheduler = Scheduler(limits or EngineLimits(), self.pool, index, no_state, logit_positions)
        self.ended: list[Request] = []
        self.most_running = 0

    def put(self, sequences: Sequence[Request]) -> None:
        for sequence in sequences:
            self.scheduler.enqueue(sequence)

    def turn(self) -> Work:
        """Admits, schedules, and does what a pass does."""
        self.scheduler.admit()
        work = self.scheduler.schedule()
        self.most_running = max(self.most_running, len(self.scheduler.running))
        self._check_others(work)
        for sequence, amount in work:
            assert amount >= 1
            assert sequence.computed + amount <= len(sequence.block_table) * BLOCK
            sequence.computed += amount
        for sequence, _ in work:
            self.scheduler.index.register(sequence)
        for sequence, _ in work:
            if sequence.remaining:
                continue
            if sequence.capture is None:
                sequence.ids.append(1)
            if sequence.capture is not None or sequence.generated == sequence.sampling.max_tokens:
                self.scheduler.release(sequence)
                self.ended.append(sequence)
        return work

    def _check_others(self, work: Work) -> None:
        """Who is not in a pass holds no block that it writes: if the pass fails, they would take it for computed."""
        written = {
            block
            for one, amount in work
            for block in one.block_table[one.computed // BLOCK : blocks_for(one.computed + amount)]
        }
        taking_part = {one.id for one, _ in work}
        for one in self.scheduler.running.values():
            assert one.id in taking_part or written.isdisjoint(one.block_table), one.id

    def finish(self, turns: int = 20_000) -> None:
        """Runs turns until everyone has ended."""
        for _ in range(turns):
            if not self.scheduler.busy:
                break
            assert self.turn(), "somebody waits, and nothing is computed"
        assert not self.scheduler.busy
        assert self.pool.used == 0
