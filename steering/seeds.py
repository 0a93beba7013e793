"""Derives seeds from seeds, so that what is drawn for one of them is drawn for no other."""

_MASK = (1 << 64) - 1


def mix(seed: int, choice: int) -> int:
    """Derives the seed of choice j: seed for 0, else the finalizer of SplitMix64 (Steele, Lea, Flood 2014), a
    bijection, of seed + j * 0x9E3779B97F4A7C15 mod 2^64, so that no two later choices share their noise."""
    if choice == 0:
        return seed
    value = (seed + choice * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
