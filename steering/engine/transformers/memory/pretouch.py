"""Pretouch: has an idle engine write blocks of the cache ahead of their use, so that the system provides their memory outside passes."""

from steering.engine.transformers.memory.block_pool import BlockPool
from steering.engine.transformers.memory.paged_cache import PagedCache

STEP_BYTES = 4 << 20
"""Written at a time. Work that arrives meanwhile waits for about 1 ms, or 10 on virtual machines whose host has not provided
the memory either."""


class Pretouch:
    """Writes zeros to blocks that were never given out.

    The system provides pages, cleared, when they are first written. Measured on two cores of a virtual machine (AMD EPYC,
    SmolLM2-135M): of 6.2 seconds for 8 prompts of 1,820 tokens, 0.7 were spent there, and 32 requests reach 0.99 in place of
    0.90 of the tokens/s before the paged cache, six rounds in turns with all memory written. The name is that of the Java virtual
    machine's option.
    """

    def __init__(self, cache: PagedCache, pool: BlockPool, ahead_bytes: int) -> None:
        """ahead_bytes: how much is written ahead of use; 0: nothing. Other devices than CPUs have all memory from the start."""
        self._cache, self._pool = cache, pool
        self._ahead = ahead_bytes // cache.block_bytes if cache.keys[0].device.type == "cpu" else 0
        self._step = max(STEP_BYTES // cache.block_bytes, 1)
        self._next = 1

    def step(self) -> bool:
        """Writes the next blocks; False when enough were written."""
        unused = self._pool.first_unused
        start = max(self._next, unused)
        stop = min(start + self._step, unused + self._ahead, self._pool.count + 1)
        if start >= stop:
            return False
        self._cache.write_zeros(start, stop)
        self._next = stop
        return True
