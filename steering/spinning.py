"""How long OpenMP's threads wait awake before they sleep. Torch-free: its OpenMP (libgomp) reads this when it is loaded."""

import os
from collections.abc import MutableMapping

SPINS = "1000"
"""Some tens of microseconds, which is longer than most gaps inside a pass. libgomp's own 300,000 are milliseconds: a thread that
waits so long for one which has no processor keeps the one it has from others. Measured on two cores (AMD EPYC, SmolLM2-135M,
tokens/s at 1 / 8 / 32 requests): beside two busy processes 54 / 372 / 643 instead of 13 / 131 / 364, beside one 42 / 270 / 674
instead of 38 / 255 / 499, alone the same within the noise. At 250 and fewer, threads sleep inside passes: a third slower alone.
"""


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Says so in the environment of a process that has not loaded torch yet, unless somebody has said how to wait."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPINS
