"""How the numbers of a block are arranged: in rows, or as our attention kernel reads them.

Keys and values are (kv_head, slot, head_dim) with slot = block * BLOCK + offset; a block of one head is contiguous. An
arrangement decides the order inside it.
"""

from steering.engine.transformers.memory.block_pool import BLOCK
from steering.shapes import Float, Int, Tensor

States = Float[Tensor, "kv_head slot head_dim"]
Tokens = Float[Tensor, "kv_head token head_dim"]
Slots = Int[Tensor, "token"]
Blocks = Int[Tensor, "row block"]
Past = Float[Tensor, "row kv_head position head_dim"]


class RowLayout:
    """Writes tokens into blocks and reads blocks back in order: position after position, each a row of head_dim numbers."""

    def write_keys(self, states: States, slots: Slots, tokens: Tokens) -> None:
        """Writes the key of each token at its slot."""
        states.index_copy_(1, slots, tokens)

    def read_keys(self, states: States, blocks: Blocks) -> Past:
        """Copies the keys of whole blocks, in order. Not contiguous for more than one row."""
        return _rows(_selected(states, blocks), blocks)

    write_values, read_values = write_keys, read_keys


class PairedLayout(RowLayout):
    """The operand layout of VDPBF16PS, see query_tile.h: keys [pair of inputs][position][2], values [pair of
    positions][input][2]. Reading it without the kernel costs a transposition."""

    def write_keys(self, states: States, slots: Slots, tokens: Tokens) -> None:
        """See RowLayout."""
        heads, _, width = states.shape
        pairs = tokens.transpose(0, 1).reshape(-1, heads, width // 2, 2)
        states.view(heads, -1, width // 2, BLOCK, 2)[:, slots // BLOCK, :, slots % BLOCK] = pairs

    def write_values(self, states: States, slots: Slots, tokens: Tokens) -> None:
        """See RowLayout."""
        heads, _, width = states.shape
        paired = states.view(heads, -1, BLOCK // 2, width, 2)
        paired[:, slots // BLOCK, slots % BLOCK // 2, :, slots % 2] = tokens.transpose(0, 1)

    def read_keys(self, states: States, blocks: Blocks) -> Past:
        """See RowLayout."""
        found = _selected(states, blocks)
        pairs = found.view(*found.shape[:2], states.shape[2] // 2, BLOCK, 2)
        return _rows(pairs.transpose(2, 3).reshape(found.shape), blocks)

    def read_values(self, states: States, blocks: Blocks) -> Past:
        """See RowLayout."""
        found = _selected(states, blocks)
        pairs = found.view(*found.shape[:2], BLOCK // 2, states.shape[2], 2)
        return _rows(pairs.transpose(3, 4).reshape(found.shape), blocks)


def _selected(states: States, blocks: Blocks) -> Float[Tensor, "kv_head selected block_numbers"]:
    return states.view(states.shape[0], -1, BLOCK * states.shape[2]).index_select(1, blocks.reshape(-1))


def _rows(found: Float[Tensor, "kv_head selected block_numbers"], blocks: Blocks) -> Past:
    heads, _, numbers = found.shape
    return found.view(heads, blocks.shape[0], -1, numbers // BLOCK).transpose(0, 1)
