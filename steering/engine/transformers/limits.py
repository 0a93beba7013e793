"""EngineLimits: how many rows, how many positions a pass, how much memory. Plain numbers an operator sets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_running: rows at once. max_waiting: live requests in the queue before `overloaded`. prefill_tokens: positions
    a pass may compute while rows decode (their streams wait that long; more where more requests wait to begin than run),
    idle_prefill_tokens: while none does, and at most.
    cache_bytes: the most the slots may take. prefix_bytes: the most shared prompt KV may take, 0 for none."""

    max_running: int = 64
    max_waiting: int = 256
    prefill_tokens: int = 256
    idle_prefill_tokens: int = 2048
    cache_bytes: int = 4 << 30
    prefix_bytes: int = 512 << 20
