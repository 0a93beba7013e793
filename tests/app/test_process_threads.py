"""The spin count is set before torch is loaded, and an operator's own setting takes precedence."""

import os
import subprocess
import sys

import pytest

from app.core.process_settings import HUGE_PAGES, SPIN_COUNT, TOKENIZER_THREADS, set_environment


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_settings_of_the_environment_take_precedence(given: dict[str, str]) -> None:
    environment = dict(given)
    set_environment(environment)
    assert environment == {**given, HUGE_PAGES: "1", TOKENIZER_THREADS: "false"}


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
def test_the_openmp_library_of_torch_reads_it() -> None:
    program = (
        "import app.core.process_settings; app.core.process_settings.set_environment(); import torch; torch.zeros(1)"
    )
    plain = {name: value for name, value in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**plain, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr


def test_commands_with_local_set_it_before_torch_is_loaded() -> None:
    program = (
        "import os, sys\nfrom app.cli.commands import client_of\nsys.modules['app.cli.local'] = None\n"
        "try:\n    with client_of('', None, local=True):\n        pass\n"
        "except ImportError:\n    print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    plain = {name: value for name, value in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True, timeout=280
    )
    assert done.stdout == f"{SPIN_COUNT} False\n"
