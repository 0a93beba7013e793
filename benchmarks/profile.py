"""Defines Profile, the amount of work in a run: FULL produces the numbers of README.md, QUICK only checks that all runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """Counts of a run. A round runs every contender once; with `warm_round`, one more round runs first and is discarded."""

    short_prompt: int = 32
    long_prompt: int = 512
    sizes: tuple[int, ...] = (1, 8, 32, 64)
    long_sizes: tuple[int, ...] = (1, 8, 32, 64)
    static_sizes: tuple[int, ...] = (1, 8, 16, 32)
    """Batch sizes of plain transformers."""
    new_tokens: int = 64
    one_at_a_time: int = 8
    """Generations of plain transformers with one configuration at a time, per round."""
    linear_passes: int = 20
    rounds: int = 5
    long_rounds: int = 1
    close_rounds: int = 7
    """Rounds where a difference of a few percent matters."""
    server_rounds: int = 15
    """Rounds of the engine with and without the server: single rounds differ by more than the bar."""
    warm_round: bool = True
    pairs: int = 120
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32)
    """Batch sizes among which an extraction peer selects its fastest."""
    streams: int = 8
    stream_tokens: int = 128
    arriving_prompt: int = 2000
    arrives_after: int = 20
    mixed_requests: int = 48
    mixed_rates: tuple[float, float] = (6.0, 12.0)
    """Requests per second of the mixed load: one that a server may keep up with, and one that saturates it."""
    mixed_words: tuple[int, int] = (8, 900)
    mixed_answers: tuple[int, int] = (8, 250)
    very_long_words: int = 1400
    very_long_sizes: tuple[int, ...] = (1, 8)


FULL = Profile()
QUICK = Profile(
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
    server_rounds=1,
    warm_round=False,
    pairs=12,
    batch_sizes=(4,),
    streams=3,
    stream_tokens=16,
    arriving_prompt=300,
    arrives_after=4,
    mixed_requests=4,
    mixed_rates=(20.0, 40.0),
    mixed_words=(8, 40),
    mixed_answers=(2, 6),
    very_long_words=60,
    very_long_sizes=(1, 8),
)
