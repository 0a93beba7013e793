"""Makes vLLM's prefix cache know the steering: a block's hash contains the fingerprint of what steered its positions.

vLLM caches prompt and answer alike. Without this, an unsteered second turn over a steered answer would read keys and
values that were computed under the steering. Positions before the last prompt position depend on the prompt's
fingerprint; from there on, on all of the plan. Hashes are chained, so each fingerprint enters once, and requests that
steer generated tokens only share the blocks of the prompt with plain ones.

On a CPU it also has vLLM clear the blocks that a request gets: attention there multiplies what a block holds behind a sequence by 0, and
NaN that a request with activations out of range left in it would remain. The worker does so once there has been such a request.

Runs in vLLM's scheduler process and in its workers: an entry point of the group `vllm.general_plugins` (pyproject.toml).
"""

from collections.abc import Callable
from typing import Any

from steering.engine.vllm.messages import EXTRA_ARGS

_NAME = "generate_block_hash_extra_keys"
_PATCHED = "_knows_steering"


def install() -> None:
    """Wraps vLLM's function for the extra keys of a block hash. May be called again. Does nothing where it is missing:
    the engine notices in its self-test."""
    try:
        from vllm.platforms import current_platform  # noqa: PLC0415 - vLLM calls this while it is imported itself
        from vllm.v1 import kv_cache_interface  # noqa: PLC0415
        from vllm.v1.core import block_pool, kv_cache_utils  # noqa: PLC0415
    except ImportError:
        return
    if current_platform.is_cpu():
        kv_cache_interface.KVCacheConfig.needs_kv_cache_zeroing = True  # see above
    inner = getattr(kv_cache_utils, _NAME, None)
    if inner is None or hasattr(inner, _PATCHED):
        return
    outer = with_steering(inner)
    setattr(outer, _PATCHED, True)
    for module in (kv_cache_utils, block_pool):
        if hasattr(module, _NAME):
            setattr(module, _NAME, outer)


def with_steering(inner: Callable[..., tuple[Any, int]]) -> Callable[..., tuple[Any, int]]:
    """Returns the function with the keys of the request's steering added."""

    def extra_keys(request: Any, start: int, end: int, start_mm: int) -> tuple[Any, int]:
        keys, next_mm = inner(request, start, end, start_mm)
        return (tuple(keys or ()) + steering_keys(request, start, end) or None), next_mm

    return extra_keys


def steering_keys(request: Any, start: int, end: int) -> tuple[tuple[str, str], ...]:
    """Returns what steering adds to the hash of the block with positions [start, end)."""
    params = getattr(request, "sampling_params", None)
    steering = ((params and params.extra_args) or {}).get(EXTRA_ARGS)
    if not steering:
        return ()
    found = []
    if start == 0 and steering["prompt_fingerprint"]:
        found.append(("steering_prompt", steering["prompt_fingerprint"]))
    if start <= steering["prompt_length"] - 1 < end and steering["fingerprint"]:
        found.append(("steering", steering["fingerprint"]))
    return tuple(found)
