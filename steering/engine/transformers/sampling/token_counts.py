"""Counts the tokens of a sequence as it grows."""

from array import array
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray


class TokenCounts:
    """The different tokens of a prompt and its answer, and how often the answer contains each.

    `update` adds new tokens only, so a step costs the same however long the sequence is.
    """

    def __init__(self) -> None:
        self._tokens, self._counts = array("q"), array("f")
        self._index: dict[int, int] = {}
        self._length = 0

    def update(self, ids: Rows[int], prompt_length: int) -> None:
        """Counts the tokens of `ids` that were added since the last call."""
        for place in range(self._length, len(ids)):
            token = ids[place]
            index = self._index.setdefault(token, len(self._tokens))
            if index == len(self._tokens):
                self._tokens.append(token)
                self._counts.append(0.0)
            self._counts[index] += place >= prompt_length
        self._length = len(ids)

    def tokens(self) -> NDArray[np.int64]:
        """Returns the different tokens, in the order in which they first appear."""
        return np.array(self._tokens)

    def generated(self) -> NDArray[np.float32]:
        """Returns how often the answer contains each of `tokens`."""
        return np.array(self._counts)
