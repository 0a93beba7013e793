"""The spin count of threads is set before torch is loaded, and an operator's setting is respected."""

import os
import subprocess
import sys

import pytest

from app.openmp import SPINS, set_openmp_spin_count


@pytest.mark.parametrize("existing", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_an_existing_setting_is_respected(existing: dict[str, str]) -> None:
    environment = dict(existing)
    set_openmp_spin_count(environment)
    assert environment == existing


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch brings on Linux")
def test_the_openmp_that_torch_loads_reads_it() -> None:
    program = "import app.openmp; app.openmp.set_openmp_spin_count(); import torch; torch.zeros(1)"
    plain = {name: value for name, value in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**plain, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr
