"""Stands where Triton expects the driver of its backend for CPUs, which vLLM's CPU build asks for before it uses Triton."""

from triton.backends.driver import DriverBase


def _missing(*_: object) -> None:
    raise NotImplementedError("kernels are interpreted")


class Host(type("Missing", (DriverBase,), dict.fromkeys(DriverBase.__abstractmethods__, _missing))):  # type: ignore[misc]
    """The driver of the interpreter, which needs none."""

    @classmethod
    def is_active(cls) -> bool:
        """Returns that there is a device."""
        return True
