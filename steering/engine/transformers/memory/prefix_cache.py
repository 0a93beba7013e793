"""PrefixCache: prompt keys and values that a later prompt would compute the same, keyed by ids and by what steered them."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from steering.engine.transformers.memory.slot_cache import SlotCache
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.steering.dose import BLOCK
from steering.shapes import Float, Tensor


def block_keys(ids: Rows[int], fingerprint: str, salt: str) -> list[bytes]:
    """key_b = H(key_(b-1), ids of block b, F_prompt, salt) for every whole block of the ids."""
    keys: list[bytes] = []
    previous = hashlib.sha256(f"{fingerprint}\0{salt}".encode()).digest()
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        block = b"".join(token.to_bytes(4, "little") for token in ids[start : start + BLOCK])
        previous = hashlib.sha256(previous + block).digest()
        keys.append(previous)
    return keys


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Keys and values of BLOCK positions in every layer, and what steering was measured to do there."""

    states: Float[Tensor, "part kv_head position head_dim"]
    measures: Float[Tensor, "source 2"]

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + self.measures.nbytes


class PrefixCache:
    """Blocks of prompts, least recently used out first, never beyond `max_bytes`.

    A block is published only where another prompt would compute and measure the same: positions before the last prompt
    position, and generated ones only when nothing steers. (Doses of an answer are summed over the whole of it, so a
    steered answer that comes back as part of a prompt is computed once more.)
    """

    def __init__(self, slots: SlotCache, max_bytes: int) -> None:
        self._slots, self._max_bytes = slots, max_bytes
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()
        self.bytes = 0

    def keys_of(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks that lie whole before the last prompt position, where steering may set in."""
        if sequence.block_keys is None:
            ids = sequence.ids[: sequence.prompt_length - 1]
            sequence.block_keys = (
                block_keys(ids, sequence.plan.prompt_fingerprint, sequence.cache_salt) if sequence.shares_prefix else []
            )
        return sequence.block_keys

    def lend(self, sequence: Sequence) -> None:
        """Copies what is known of the prompt into the slot, and what was measured into the report; the sequence then
        starts behind it."""
        found = []
        for key in self.keys_of(sequence):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        if found:
            self._slots.copy_in(sequence.slot, torch.cat([block.states for block in found], dim=2))
            for number, block in enumerate(found):
                sequence.dose.restore_block(number, block.measures)
            sequence.computed = sequence.cached = len(found) * BLOCK

    def publish(self, sequence: Sequence, *, finished: bool = False) -> None:
        """Keeps the blocks that the sequence has computed so far and nobody had."""
        if not sequence.shares_prefix or not self._slots.uniform:
            return
        keys = self.keys_of(sequence)
        if finished and sequence.plan.empty:
            keys = block_keys(sequence.ids[: sequence.computed], sequence.plan.prompt_fingerprint, sequence.cache_salt)
        ready = keys[: sequence.computed // BLOCK]
        new = [number for number, key in enumerate(ready) if key not in self._blocks]
        if not new:
            return
        first = new[0]
        run = self._slots.copy_out(sequence.slot, first * BLOCK, len(ready) * BLOCK)
        for number in new:
            start = (number - first) * BLOCK
            states = run[:, :, start : start + BLOCK]
            if states.nbytes < run.nbytes:  # or it would keep the whole run
                states = states.clone()
            block = _Block(states, sequence.dose.block_measures(number))
            self._blocks[ready[number]] = block
            self.bytes += block.nbytes
        self._evict()

    def _evict(self) -> None:
        while self.bytes > self._max_bytes and self._blocks:
            _, block = self._blocks.popitem(last=False)
            self.bytes -= block.nbytes

    def missing(self, sequence: Sequence) -> bytes | None:
        """The first block of the prompt that still has to be computed, if it is a whole one."""
        keys = self.keys_of(sequence)
        number = sequence.computed // BLOCK
        return keys[number] if number < len(keys) else None

    def clear(self) -> None:
        self._blocks.clear()
        self.bytes = 0
