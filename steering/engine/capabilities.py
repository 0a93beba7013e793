"""What only some engines can do: protocols of their own, and one error for engines that lack them."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from steering.engine.api import Engine
from steering.engine.fit_task import FitTask, FittedDirection
from steering.errors import UnsupportedParameter
from steering.shapes import Float, Residual, Tensor


@runtime_checkable
class SupportsUnembed(Protocol):
    """An engine that can apply the model's final norm and head to residuals, which the logit lens needs."""

    async def unembed(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """Returns the logits of residuals (token, d_model) in float32 on the host.

        Raises InvalidRequest for another width, EngineDead.
        """
        ...


@runtime_checkable
class SupportsFitting(Protocol):
    """An engine that can fit a direction by gradient against the frozen model."""

    async def fit(self, task: FitTask, *, progress: Callable[[int, int], None] | None = None) -> FittedDirection:
        """Fits a direction in the background; the weights never change, and cancelling the task stops it.

        `progress(done, total)` counts optimisation steps. Raises InvalidRequest for a task that cannot be fitted,
        NonfiniteActivations, OutOfMemory, EngineDead.
        """
        ...


@runtime_checkable
class ReadsMonitors(Protocol):
    """An engine that reads the monitors of its requests."""

    reads_monitors: bool


@runtime_checkable
class SteersTokenScopes(Protocol):
    """An engine that steers tokens chosen by `scope.token_ids` and `scope.roles`."""

    steers_token_scopes: bool


def steers_token_scopes(engine: Engine) -> bool:
    """Returns whether an engine steers tokens chosen by their ids or their messages' roles. One that does not refuses them."""
    return isinstance(engine, SteersTokenScopes) and engine.steers_token_scopes


@runtime_checkable
class LimitsTemperature(Protocol):
    """An engine that samples up to a temperature only, and refuses a higher one."""

    max_temperature: float


def limits_of(engine: Engine) -> dict[str, int | float]:
    """Returns an engine's own limits of a request, by name."""
    return {"max_temperature": engine.max_temperature} if isinstance(engine, LimitsTemperature) else {}


def check_reads_monitors(engine: Engine) -> None:
    """Raises UnsupportedParameter for an engine that would ignore monitors."""
    if not (isinstance(engine, ReadsMonitors) and engine.reads_monitors):
        raise _unsupported(engine, "read monitors", "monitors")


def unembedding_of(engine: Engine) -> SupportsUnembed:
    """Returns the engine as one that unembeds residuals. Raises UnsupportedParameter if it does not."""
    if not isinstance(engine, SupportsUnembed):
        raise _unsupported(engine, "unembed residuals, which the logit lens needs")
    return engine


def fitting_of(engine: Engine) -> SupportsFitting:
    """Returns the engine as one that fits directions. Raises UnsupportedParameter if it does not."""
    if not isinstance(engine, SupportsFitting):
        raise _unsupported(engine, "fit directions by gradient, which method 'trained' needs", "method")
    return engine


def _unsupported(engine: Engine, what: str, param: str | None = None) -> UnsupportedParameter:
    return UnsupportedParameter(f"the engine {engine.name!r} cannot {what}", param=param)
