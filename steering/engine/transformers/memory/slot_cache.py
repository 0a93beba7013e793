"""SlotCache: keys and values of sequences that come and go, one slot a sequence, as a transformers Cache."""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from steering.engine.transformers.batch import Batch
from steering.shapes import Float, Tensor

BLOCK = 128
"""Capacity and the length that decode attention looks at grow in steps of this many positions."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """keys, values: (slot, kv_head, position, head_dim). Sliding layers keep everything; their window is in the mask."""

    is_sliding = False
    is_compileable = True

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        slots, capacity = self._cache.slots, self._cache.capacity
        self.keys = key_states.new_zeros(slots, key_states.shape[1], capacity, key_states.shape[3])
        self.values = value_states.new_zeros(slots, value_states.shape[1], capacity, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Float[Tensor, "row kv_head position head_dim"], Float[Tensor, "row kv_head position head_dim"]]:
        """Writes each token at its own slot and position.

        A decode pass gets back the filled part of its rows' slots (a view), a packed pass its own new states: the
        attention function reads earlier positions from the slots itself. With `own` attention: one row and its past.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch = self._cache.batch
        assert batch is not None, "the cache is written during a pass only"
        if batch.decode:
            rows = key_states.shape[0]
            self.keys[batch.slots, :, batch.positions] = key_states[:, :, 0]
            self.values[batch.slots, :, batch.positions] = value_states[:, :, 0]
            return self.keys[:rows, :, : batch.length], self.values[:rows, :, : batch.length]
        self.keys[batch.slots, :, batch.positions] = key_states[0].transpose(0, 1)
        self.values[batch.slots, :, batch.positions] = value_states[0].transpose(0, 1)
        if (loans := batch.loans) is not None:
            for states in (self.keys, self.values):
                states[loans.borrowers, :, loans.positions] = states[loans.lenders, :, loans.positions]
        if self._cache.own_attention:
            slot, filled = self._cache.own_row()
            return self.keys[slot : slot + 1, :, :filled], self.values[slot : slot + 1, :, :filled]
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Positions before this pass, for models that compute their own masks from it."""
        batch = self._cache.batch
        return batch.segments[0].first if batch is not None and self._cache.own_attention else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """All layers' slots. Grows in slots and positions when a pass needs more."""

    def __init__(self, layer_count: int, *, own_attention: bool = False) -> None:
        self.slots, self.capacity = 1, BLOCK
        self.batch: Batch | None = None
        self.own_attention = own_attention
        super().__init__(layers=[SlotLayer(self) for _ in range(layer_count)])

    @property
    def begun(self) -> bool:
        """Whether keys and values have been allocated: from the first pass on."""
        return all(layer.is_initialized for layer in self.layers)

    def own_row(self) -> tuple[int, int]:
        """(slot, filled positions) of the only row of a pass whose model builds its own masks."""
        assert self.batch is not None
        segment = self.batch.segments[0]
        return segment.sequence.slot, segment.last_position + 1

    def reserve(self, slots: int, length: int) -> None:
        """Makes room for that many slots of that many positions, keeping what is there."""
        capacity = -(-length // BLOCK) * BLOCK
        if slots <= self.slots and capacity <= self.capacity:
            return
        self._resize(max(slots, self.slots), max(capacity, self.capacity))

    def trim(self, slots: int, length: int) -> None:
        """Gives back what lies beyond that many slots and positions."""
        self._resize(min(slots, self.slots), min(-(-length // BLOCK) * BLOCK, self.capacity))

    def clear(self) -> None:
        """Gives everything back."""
        self.slots, self.capacity = 1, BLOCK
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False

    def _resize(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys = self._resized(layer.keys)
                layer.values = self._resized(layer.values)

    def _resized(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.slots, old.shape[1], self.capacity, old.shape[3])
        slots, length = min(self.slots, old.shape[0]), min(self.capacity, old.shape[2])
        new[:slots, :, :length] = old[:slots, :, :length]
        return new

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a slot to another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    @property
    def uniform(self) -> bool:
        """Whether all layers' keys and values have one shape, so that they stack."""
        shapes = {
            (t.shape[1], t.shape[3])
            for layer in self.layers
            if layer.is_initialized
            for t in (layer.keys, layer.values)
        }
        return len(shapes) == 1

    def copy_out(self, slot: int, start: int, end: int) -> Float[Tensor, "part kv_head position head_dim"]:
        """Keys of every layer, then values of every layer, at positions [start, end) of a slot."""
        states = [layer.keys for layer in self.layers] + [layer.values for layer in self.layers]
        parts: Tensor = torch.stack([state[slot, :, start:end] for state in states])
        return parts

    def copy_in(self, slot: int, parts: Float[Tensor, "part kv_head position head_dim"]) -> None:
        """The inverse, from position 0 on."""
        length, count = parts.shape[2], len(self.layers)
        for number, layer in enumerate(self.layers):
            layer.keys[slot, :, :length] = parts[number]
            layer.values[slot, :, :length] = parts[count + number]

    def wipe(self, slot: int) -> None:
        """Zeroes a slot. Masked positions are multiplied by zero, and zero times a left-over NaN is NaN."""
        for layer in self.layers:
            if layer.is_initialized and slot < layer.keys.shape[0]:
                layer.keys[slot].zero_()
                layer.values[slot].zero_()


def head_shape(model: Any) -> tuple[int, int]:
    """(key-value heads, width of a head) of a model."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(heads), int(width)


def states_like(model: Any, layer_count: int) -> list[Float[Tensor, "slot kv_head position head_dim"]]:
    """Keys or values of a few slots, one tensor a layer, to trace with."""
    heads, width = head_shape(model)
    weight = next(model.parameters())
    return [weight.new_zeros(4, heads, 384, width) for _ in range(layer_count)]
