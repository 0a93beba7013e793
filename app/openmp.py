"""How long OpenMP's threads wait awake before they sleep. Torch-free: its OpenMP (libgomp) reads this when it is loaded."""

import os
from collections.abc import MutableMapping

SPINS = "1000"
"""23 microseconds on an AMD EPYC, where libgomp's own 300,000 are 7 milliseconds: a thread that waits so long for one which has
no processor keeps the one it has from others. Measured on two cores (AMD EPYC, SmolLM2-135M,
tokens/s at 1 / 8 / 32 requests): beside two busy processes 54 / 372 / 643 instead of 13 / 131 / 364, beside one 42 / 270 / 674
instead of 38 / 255 / 499, alone the same within the noise. With 250 it is slower alone, by a quarter at 1 request and a tenth at 8:
threads then sleep inside passes.
"""


def set_openmp_spin_count(environment: MutableMapping[str, str] = os.environ) -> None:
    """Says so in the environment of a process that has not loaded torch yet, unless somebody has said how to wait."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPINS
