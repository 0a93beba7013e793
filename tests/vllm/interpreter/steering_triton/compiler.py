"""Stands where Triton expects the compiler of its backend for CPUs. Nothing is compiled under `TRITON_INTERPRET=1`."""

from triton.backends.compiler import BaseBackend


def _missing(*_: object) -> None:
    raise NotImplementedError("kernels are interpreted")


Interpreted = type("Interpreted", (BaseBackend,), dict.fromkeys(BaseBackend.__abstractmethods__, _missing))
