"""How long threads wait awake is said before torch is loaded, and what an operator said is left."""

import os
import subprocess
import sys

import pytest

from app.openmp import SPINS, set_openmp_spin_count


@pytest.mark.parametrize("said", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_was_said_is_left(said: dict[str, str]) -> None:
    environment = dict(said)
    set_openmp_spin_count(environment)
    assert environment == said


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch brings on Linux")
def test_the_openmp_that_torch_loads_has_heard_of_it() -> None:
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
