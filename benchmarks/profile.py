"""Effort: how much is measured. FULL is what the figures in README.md are from; QUICK only shows that everything runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts of everything. A round asks every side once; one round more is made first and forgotten, if `warm_round`."""

    short_prompt: int = 32
    long_prompt: int = 512
    sizes: tuple[int, ...] = (1, 8, 32, 64)
    long_sizes: tuple[int, ...] = (1, 8, 32, 64)
    static_sizes: tuple[int, ...] = (1, 8, 16, 32)
    """Batch sizes of plain transformers."""
    new_tokens: int = 64
    one_at_a_time: int = 8
    """Generations of the one-configuration-at-a-time way in a round; every round takes other configurations."""
    linear_passes: int = 20
    rounds: int = 3
    long_rounds: int = 1
    close_rounds: int = 7
    """Rounds where a few percent matter."""
    warm_round: bool = True
    pairs: int = 120
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32)
    """Batch sizes among which an extraction peer finds its best."""
    streams: int = 8
    stream_tokens: int = 128
    arriving_prompt: int = 2000
    arrives_after: int = 20
    vllm_settings: int = 2
    """Of vLLM's settings of threads, how many are tried to find its faster one."""


FULL = Effort()
QUICK = Effort(
    long_prompt=48,
    sizes=(1, 8, 32),
    long_sizes=(2,),
    static_sizes=(1, 8),
    new_tokens=4,
    one_at_a_time=2,
    linear_passes=2,
    rounds=1,
    long_rounds=1,
    close_rounds=1,
    warm_round=False,
    pairs=12,
    batch_sizes=(4,),
    streams=3,
    stream_tokens=16,
    arriving_prompt=300,
    arrives_after=4,
    vllm_settings=1,
)
