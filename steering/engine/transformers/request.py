"""Request: an answer or a text that is read, from the queue to its last token. Batch: the tokens of one forward pass."""

from array import array
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine.answers import Answer, Stream
from steering.engine.transformers.block_pool import BLOCK, NULL_BLOCK, blocks_for
from steering.injection.rows import Segment
from steering.model.hook_points import only_residual
from steering.plan.scope import follows_single_tokens
from steering.plan.types import SteeringPlan
from steering.shapes import Int, Tensor
from steering.uploads import uploaded

Pieces: TypeAlias = Generator[object, None, object]
"""Yields after each piece of work: None, or progress for the caller. Returns the result."""


def prompt_calls(plan: SteeringPlan) -> int:
    """Returns how many edits and tests of conditions a plan has computed at each prompt position, over all layers."""
    acting = sum(len(edit.kinds) for edits in plan.layers.values() for edit in edits if edit.prompt_key)
    return acting + sum(threshold.at != "prompt" for threshold in plan.thresholds)


@dataclass(eq=False)
class Outbox:
    """What is answered through a stream. outbox: items that have not been sent. ended: the last of all items is there, or was sent."""

    outbox: list[object] = field(default_factory=list, init=False)
    ended: bool = field(default=False, init=False)

    def end(self, item: object) -> None:
        """Writes the last item, unless there is one."""
        if not self.ended:
            self.outbox.append(item)
            self.ended = True


@dataclass(eq=False)
class BackgroundTask(Outbox):
    """One task, from the queue to its result. urgent: a caller waits for it, so it goes before those that are not."""

    stream: Stream
    pieces: Pieces
    urgent: bool = False


class TokenCounts:
    """The different tokens of a prompt and its answer, and how often the answer contains each.

    `update` adds new tokens only, so a step costs the same however long the request is.
    """

    def __init__(self) -> None:
        self._tokens, self._counts = array("q"), array("f")
        self._index: dict[int, int] = {}
        self._length = 0

    def update(self, ids: list[int], prompt_length: int) -> None:
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


@dataclass(eq=False, kw_only=True)
class Request(Outbox, Answer):
    """One request of this engine: an answer or a text that is read, and how it is scheduled.

    client: whom it comes from, for turns; by default its cache salt: each API key has its own, and each call that reads texts.
    block_table: its cache blocks, the first `shared` of them taken over from others.
    shareable: positions whose blocks may be shared: those in front of the first one that is read, or that predicts a token.
    order: when it was admitted first.
    overtaken: how many requests were admitted before it since it did not fit.
    computed_again: whether it was preempted because a pass did not fit into memory, which happens to it once.
    arrived: when it came, by the monotonic clock.
    """

    id: int
    stream: Stream
    priority: int = 0
    cache_salt: str = ""
    client: str = ""
    running: bool = False
    order: int = 0
    overtaken: int = 0
    preemptions: int = 0
    computed_again: bool = False
    token_counts: TokenCounts = field(default_factory=TokenCounts)
    block_table: list[int] = field(default_factory=list)
    shared: int = 0
    block_keys: list[bytes] | None = None
    shareable: int = 0
    cache_epoch: int = 0
    arrived: float = field(default_factory=monotonic)
    prompt_calls: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.client = self.client or self.cache_salt
        self.prompt_calls = prompt_calls(self.plan)
        if self.capture is None:
            self.shareable = self.prompt_length - 1
        else:
            end = len(self.ids) if self.plan.empty else self.prompt_length
            first = self.capture.first if self.capture.wants_logits else end - 1
            self.shareable = min(self.capture.window[0], first, end - 1)

    @cached_property
    def hooked(self) -> bool:
        """Whether it acts or reads at hook points inside blocks, which compiled passes do not have."""
        read = () if self.capture is None else self.capture.layers
        return not only_residual((*self.plan.layers, *read, *(one.layer for one in self.readings)))

    @property
    def going_on(self) -> bool:
        """Whether its answer has begun and has not ended."""
        return self.running and self.generated > 1

    @property
    def remaining(self) -> int:
        """Positions to compute before the next token can be chosen, or the text is read."""
        return len(self.ids) - self.computed

    @property
    def positions_to_choose(self) -> int:
        """Positions of the pass of its own, before its first, that finds the tokens which attend to a phrase."""
        return len(self.ids) if self.capture is not None and self.capture.chooses else 0

    @property
    def most_positions(self) -> int:
        """How many of `remaining` one pass may compute. Where each generated token depends on what the one before it left: one."""
        if not follows_single_tokens(self.plan):
            return self.remaining
        return max(self.prompt_length - self.computed, 1)

    @property
    def prefilling(self) -> bool:
        """Whether it has more to compute than the token it chose last."""
        return self.remaining > 1 or self.generated == 0 or self.capture is not None

    @property
    def background(self) -> bool:
        """Whether it belongs to background work: captures, and what is asked for at a lower priority."""
        return self.capture is not None or self.priority > 0

    @property
    def max_length(self) -> int:
        """The most positions it can need in the cache."""
        return len(self.ids) if self.capture is not None else self.prompt_length + self.sampling.max_tokens

    def restart(self) -> None:
        """Forgets what was computed, measured and read, so that it is computed again from the first position."""
        self.computed = self.shared = 0
        self.doses.reset()
        self.preemptions += 1
        if self.capture is not None:
            self.capture.pieces.clear()
            self.capture.logits.clear()


@dataclass(eq=False)
class Batch:
    """What one pass computes: segments of requests, one after the other. A decode row is a segment of one token.

    slots: where each token's key and value are written in the cache (block * BLOCK + offset).
    """

    segments: tuple[Segment[Request], ...]
    token_ids: Int[Tensor, "token"]
    positions: Int[Tensor, "token"]
    slots: Int[Tensor, "token"]
    _slots: dict[torch.device, Int[Tensor, "token"]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def segment_table(self) -> Int[Tensor, "segment 3"]:
        """The first token, the number of tokens and the first position of every segment."""
        return torch.tensor([[s.start, s.length, s.first] for s in self.segments])

    @cached_property
    def block_table(self) -> Int[Tensor, "segment block"]:
        """Every segment's blocks, padded with NULL_BLOCK."""
        return block_table(self.segments, self.positions.device)

    def slots_on(self, device: torch.device) -> Int[Tensor, "token"]:
        """Returns `slots` on the device of a layer, copied there once a pass."""
        if device not in self._slots:
            self._slots[device] = self.slots.to(device)
        return self._slots[device]


def block_table(segments: Sequence[Segment[Request]], device: torch.device) -> Int[Tensor, "segment block"]:
    """Returns the blocks that each segment's positions up to its last are in, padded with NULL_BLOCK."""
    tables = [segment.row.block_table[: blocks_for(segment.last_position + 1)] for segment in segments]
    widest = max(map(len, tables))
    return uploaded([[*table, *[NULL_BLOCK] * (widest - len(table))] for table in tables], device)


def batch_of(work: Sequence[tuple[Request, int]], device: torch.device) -> Batch:
    """Builds a pass from requests and how many of their next positions it computes; their blocks are allocated."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    segments = []
    for request, count in work:
        first, table = request.computed, request.block_table
        segments.append(Segment(request, first, len(ids), len(ids) + count))
        ids.extend(request.ids[first : first + count])
        positions.extend(range(first, first + count))
        slots.extend(table[at // BLOCK] * BLOCK + at % BLOCK for at in range(first, first + count))
    token_ids, at, slot = uploaded([ids, positions, slots], device)
    return Batch(segments=tuple(segments), token_ids=token_ids, positions=at, slots=slot)
