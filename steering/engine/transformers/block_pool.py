"""BlockPool: fixed-size blocks of the key-value cache: reference counts, a hash index of full blocks, LRU eviction."""

from collections import Counter, OrderedDict
from collections.abc import Sequence

from steering.injection.rows import BLOCK as DOSE_BLOCK

BLOCK = DOSE_BLOCK  # positions in a block; what steering did in them is summed together
NULL_BLOCK = 0  # never given out: block tables are padded with it, so it only ever holds zeros


def blocks_for(positions: int) -> int:
    """Returns how many blocks hold that many positions."""
    return -(-positions // BLOCK)


class BlockPool:
    """Hands out block numbers from 1 to `count`. It holds no tensors.

    A block is in use (referenced by one or more block tables), cached (unreferenced, but found by its hash), or free.
    `release` queues the last block of a table first, so a block is never evicted before the blocks that continue it.

    first_unused: the lowest number that was never given out; such blocks are given out first, in order.
    unclean: allocated blocks that have to be zeroed before the next pass, which clears the list.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count, 0, -1))
        self._references = [0] * (count + 1)
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._dirty: set[int] = set()
        self.first_unused = 1
        self.unclean: list[int] = []

    @property
    def available(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """Unreferenced blocks kept for later prompts."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Blocks referenced by a request."""
        return self.count - self.available

    def allocate(self, count: int) -> list[int] | None:
        """Takes blocks, evicting cached ones when no free ones are left; None, and nothing taken, when there are too few."""
        if count > self.available:
            return None
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                del self._block_of[self._hash_of.pop(block)]
            self._references[block] = 1
            self.first_unused = max(self.first_unused, block + 1)
            blocks.append(block)
        self.unclean += self._dirty.intersection(blocks)
        self._dirty.difference_update(blocks)
        return blocks

    def lookup(self, key: bytes) -> int | None:
        """Returns the block registered under a hash, without taking a reference."""
        return self._block_of.get(key)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Adds a reference to each of some blocks that are in use or cached."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def register(self, block: int, key: bytes) -> bool:
        """Makes a block in use findable by its hash; False when another block is, or this one has a hash already."""
        if key in self._block_of or block in self._hash_of:
            return False
        self._hash_of[block] = key
        self._block_of[key] = block
        return True

    def release(self, blocks: Sequence[int], *, dirty: bool = False) -> None:
        """Drops one reference to each block of a table. dirty: they may hold values that are not finite."""
        if dirty:
            self._dirty.update(blocks)
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def freed_by(self, tables: Sequence[Sequence[int]]) -> int:
        """Returns how many blocks would become available if some tables were released: those that no other table has."""
        counts = Counter(block for table in tables for block in table)
        return sum(self._references[block] == count for block, count in counts.items())

    def forget_all(self) -> None:
        """Empties the index. Blocks in use stay with their requests."""
        self._free += self._cached
        self._cached.clear()
        self._hash_of.clear()
        self._block_of.clear()
