"""SharedPrefixes: what the texts of one packed pass begin with in common is computed once, by the first that has it.

The two texts of a contrastive pair differ at their end: they share template, system prompt and question. Unlike the
prefix cache this shares single tokens, within one pass, and keeps nothing.
"""

from steering.engine.transformers.sequence import Sequence

LEAST = 4
"""Positions; fewer are not worth a copy."""


class SharedPrefixes:
    """A tree of the tokens that the pass computes, each known by who computes it. For captures that nothing steers."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}
        self._slots: list[int] = [-1]

    def lend(self, sequence: Sequence) -> None:
        """A text that begins like one before it starts where they part: `sequence.borrowed` are the slots, position by
        position, from which the pass takes keys and values."""
        if sequence.computed or not _plain(sequence):
            return
        node, slots = 0, list[int]()
        for token in sequence.ids[: _unread(sequence)]:
            child = self._children.get((node, token))
            if child is None:
                break
            node = child
            slots.append(self._slots[node])
        if len(slots) >= LEAST:
            sequence.borrowed = tuple(slots)
            sequence.computed = len(slots)

    def offer(self, sequence: Sequence, count: int) -> None:
        """What the pass computes of a sequence from position `computed` on may serve those who come after it."""
        if sequence.computed != len(sequence.borrowed) or not _plain(sequence):
            return  # a later piece: its beginning lies in no pass that others wait for
        node = 0
        for position, token in enumerate(sequence.ids[: sequence.computed + count]):
            node = self._child(node, token, sequence.slot if position >= sequence.computed else -1)

    def _child(self, node: int, token: int, slot: int) -> int:
        key = (node, token)
        if key not in self._children:
            self._children[key] = len(self._slots)
            self._slots.append(slot)
        return self._children[key]


def _plain(sequence: Sequence) -> bool:
    return sequence.capture is not None and sequence.plan.empty


def _unread(sequence: Sequence) -> int:
    """How many positions at the beginning are only computed for those behind them."""
    assert sequence.capture is not None
    return 0 if sequence.capture.spec.logits else min(sequence.capture.window[0], len(sequence.ids) - 1)
