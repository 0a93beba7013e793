"""Sets how long OpenMP threads spin before they sleep. Torch-free, since libgomp reads the setting when torch loads it."""

import os
from collections.abc import MutableMapping

SPIN_COUNT = "1000"
"""About 23 microseconds on an AMD EPYC; libgomp's default of 300,000 takes 7 milliseconds, during which a thread that waits for
a descheduled one keeps its own processor from it. Measured on two cores (AMD EPYC, SmolLM2-135M, tokens/s at 1 / 8 / 32 requests):
next to two busy processes 54 / 372 / 643 instead of 13 / 131 / 364, next to one 42 / 270 / 674 instead of 38 / 255 / 499, on an idle
machine the same within the noise. A count of 250 is slower on an idle machine, by a quarter at 1 request and a tenth at 8: threads
then sleep within passes.
"""


def set_openmp_spin_count(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the spin count for a process that has not loaded torch yet, unless the environment already sets a wait policy."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
