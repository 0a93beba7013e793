"""BlockPool: every block is free, cached or in use, and a cached block goes only after the blocks that continue it."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from steering.engine.transformers.block_pool import NULL_BLOCK, BlockPool
from steering.engine.transformers.paged_cache import block_keys

COUNT = 9
PROMPTS = [tuple(range(first, first + 64)) for first in (0, 0, 100)]


@dataclass
class Table:
    """The blocks of one sequence, and the hashes they may be registered under."""

    blocks: list[int]
    keys: list[bytes] = field(default_factory=list)


class Pool(RuleBasedStateMachine):
    """Sequences come, share, grow and go; the model is plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT)
        self.tables: list[Table] = []

    @rule(prompt=st.sampled_from(PROMPTS), blocks=st.integers(1, 4), dirty=st.booleans())
    def come(self, prompt: tuple[int, ...], blocks: int, dirty: bool) -> None:
        keys = block_keys(prompt[: 16 * blocks], "", "")
        shared: list[int] = []
        for key in keys:
            block = self.pool.lookup(key)
            if block is None:
                break
            self.pool.acquire([block])
            shared.append(block)
        before = self.pool.available
        own = self.pool.allocate(blocks - len(shared))
        if own is None:
            assert blocks - len(shared) > before
            self.pool.release(shared)
            return
        assert NULL_BLOCK not in own
        self.tables.append(Table(shared + own, keys))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        for block, key in zip(table.blocks, table.keys, strict=False):
            self.pool.register(block, key)
            assert self.pool.lookup(key) is not None

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), dirty=st.booleans())
    def go(self, data: st.DataObject, dirty: bool) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table.blocks, dirty=dirty)

    @rule()
    def forget(self) -> None:
        self.pool.forget_all()
        assert self.pool.cached == 0

    @invariant()
    def every_block_is_somewhere(self) -> None:
        used = {block for table in self.tables for block in table.blocks}
        assert self.pool.used == len(used)
        assert self.pool.available == COUNT - len(used)
        assert 0 <= self.pool.cached <= self.pool.available

    @invariant()
    def no_two_tables_own_a_block(self) -> None:
        """A block in two tables stands at the same place of both, under one hash."""
        places = {(block, number) for table in self.tables for number, block in enumerate(table.blocks)}
        assert len(places) == len({block for block, _ in places})

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table.blocks)
        assert self.pool.used == 0
        assert self.pool.allocate(COUNT) is not None


TestPool = Pool.TestCase


def test_the_end_of_a_prompt_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(4)
    keys = block_keys(range(64), "", "")
    blocks = pool.allocate(4) or []
    for block, key in zip(blocks, keys, strict=True):
        pool.register(block, key)
    pool.release(blocks)
    assert pool.cached == 4
    for left in (3, 2, 1):
        pool.allocate(1)
        assert [pool.lookup(key) is not None for key in keys] == [number < left for number in range(4)]


def test_the_prompt_used_last_stays_longest() -> None:
    pool = BlockPool(2)
    first, second = block_keys(range(16), "", ""), block_keys(range(16, 32), "", "")
    for key in (first[0], second[0]):
        block = pool.allocate(1) or []
        pool.register(block[0], key)
        pool.release(block)
    again = pool.lookup(first[0])
    assert again is not None
    pool.acquire([again])
    pool.release([again])
    pool.allocate(1)
    assert pool.lookup(first[0]) == again
    assert pool.lookup(second[0]) is None


def test_blocks_that_may_hold_nan_are_named_when_they_are_used_again() -> None:
    pool = BlockPool(3)
    wild, calm = pool.allocate(1) or [], pool.allocate(2) or []
    pool.release(wild, dirty=True)
    pool.release(calm)
    assert pool.unclean == []
    pool.allocate(3)
    assert pool.unclean == wild
    pool.unclean.clear()
    pool.release([1, 2, 3])
    pool.allocate(3)
    assert pool.unclean == []


@given(st.lists(st.integers(0, 1 << 20), max_size=80), st.integers(0, 79))
def test_a_hash_names_all_tokens_up_to_its_end(ids: list[int], changed: int) -> None:
    keys = block_keys(ids, "plan", "salt")
    assert len(keys) == len(ids) // 16
    if changed < len(ids):
        others = block_keys([*ids[:changed], ids[changed] + 1, *ids[changed + 1 :]], "plan", "salt")
        assert [a == b for a, b in zip(keys, others, strict=True)] == [n < changed // 16 for n in range(len(keys))]
    assert not set(keys) & set(block_keys(ids, "plan", "another"))
