"""BlockMeasures: the doses of prompt blocks, so that a report does not depend on who computed a prompt that is shared."""

import hashlib
from collections.abc import Iterator

import torch
from cachetools import LRUCache

from steering.engine.vllm.worker.rows import WorkerRow
from steering.injection.dose import BLOCK
from steering.shapes import Float, Tensor

MAX_NUMBERS = 1 << 22
"""float64 numbers that are kept, 32 MB. Where a block's are gone, a report counts the positions that were computed."""


class BlockMeasures:
    """The measures of blocks by (prompt fingerprint, token ids up to the block's end), the most recently used."""

    def __init__(self) -> None:
        self._blocks: LRUCache[bytes, Float[Tensor, number]] = LRUCache(MAX_NUMBERS, getsizeof=Tensor.numel)

    def store(self, row: WorkerRow) -> None:
        """Keeps the measures of the blocks that a request has computed so far."""
        if not row.shares_measures:
            return
        end = min(row.computed, row.prompt_length - 1) // BLOCK
        if end <= row.stored:
            return
        for block, key in enumerate(_keys(row, end)):
            if block >= max(row.stored, row.cached // BLOCK):
                self._blocks[key] = row.doses.block_measures(block)
        row.stored = end

    def restore(self, row: WorkerRow) -> None:
        """Adds the measures of the blocks that a request found in the cache. Called at its end: their owner may compute
        them in the same step in which they are shared."""
        if not row.shares_measures:
            return
        for block, key in enumerate(_keys(row, row.cached // BLOCK)):
            measures = self._blocks.get(key)
            if measures is not None:
                row.doses.restore_block(block, measures)


def _keys(row: WorkerRow, count: int) -> Iterator[bytes]:
    """Yields the keys of the first blocks of a prompt: a hash chain, as the prefix cache has."""
    digest = hashlib.sha256(row.plan.prompt_fingerprint.encode())
    ids = torch.tensor(row.ids[: count * BLOCK], dtype=torch.int64).numpy()
    for block in range(count):
        digest.update(ids[block * BLOCK : (block + 1) * BLOCK].tobytes())
        yield digest.digest()
