"""What only some engines can do, and one error for engines that lack it: protocols of their own, and the attributes
`reads_monitors`, `reads_attention`, `steers_token_scopes` and `max_temperature`, which an engine may have."""

from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

from steering.engine.api import Engine, FitTask, FittedDirection, Position
from steering.errors import UnsupportedParameter
from steering.model.phases import PhaseRules
from steering.model.thinking import ThinkingFormat
from steering.model.tool_calls import FORMATS, ToolFormat
from steering.schemas.messages import SpanPosition
from steering.schemas.structured import Grammar
from steering.shapes import Float, Residual, Tensor
from steering.spec import PhaseName


@runtime_checkable
class SupportsUnembed(Protocol):
    """An engine that can apply the model's final norm and head to residuals, which the logit lens needs."""

    async def unembed(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """Returns the logits of residuals in float32 on the host. Raises InvalidRequest for another width, EngineDead."""


@runtime_checkable
class SupportsFitting(Protocol):
    """An engine that can fit a direction by gradient against the frozen model."""

    async def fit(self, task: FitTask, *, progress: Callable[[int, int], None] | None = None) -> FittedDirection:
        """Fits a direction in the background; the weights never change, and cancelling the task stops it.

        `progress(done, total)` counts optimisation steps. Raises InvalidRequest for a task that cannot be fitted,
        NonfiniteActivations, OutOfMemory, EngineDead.
        """


@runtime_checkable
class SupportsGrammars(Protocol):
    """An engine whose answers can be held to `SamplingParams.grammar`."""

    async def check_grammar(self, grammar: Grammar) -> None:
        """Compiles a grammar in a thread, and keeps it for the requests that follow. Raises InvalidRequest for one that is not
        valid, UnsupportedParameter for the model's tokenizer."""


def steers_token_scopes(engine: Engine) -> bool:
    """Returns whether an engine steers tokens chosen by their ids or their messages' roles. One that does not refuses them."""
    return getattr(engine, "steers_token_scopes", False)


def limits_of(engine: Engine) -> dict[str, int | float]:
    """Returns an engine's own limits of a request, by name: it refuses a temperature above its `max_temperature`."""
    return {"max_temperature": engine.max_temperature} if hasattr(engine, "max_temperature") else {}


def takes_grammars(engine: Engine) -> bool:
    """Returns whether the answers of an engine can be held to a schema or a grammar."""
    return isinstance(engine, SupportsGrammars)


async def check_grammar(engine: Engine, grammar: Grammar) -> None:
    """Compiles a grammar. Raises UnsupportedParameter for an engine that would ignore it, else as SupportsGrammars.check_grammar."""
    _require(engine, takes_grammars(engine), "hold answers to a schema or a grammar", grammar.param)
    await cast(SupportsGrammars, engine).check_grammar(grammar)


def tool_format(engine: Engine) -> ToolFormat | None:
    """Returns how the model of an engine writes calls of tools; None where it does not, or in an unknown format."""
    found: ToolFormat | None = getattr(engine.tokenizer, "tool_format", None)
    return found


def tool_format_of(engine: Engine) -> ToolFormat:
    """Returns how the model of an engine writes calls of tools. Raises UnsupportedParameter naming the model if it does not."""
    if (found := tool_format(engine)) is None:
        known = ", ".join(one.name for one in FORMATS)
        raise UnsupportedParameter(
            f"model {engine.info.name!r} cannot be given tools: its chat template has none, or calls in no known format ({known})",
            param="tools",
        )
    return found


def thinking_format(engine: Engine) -> ThinkingFormat | None:
    """Returns how the model of an engine marks what it thinks before it answers; None where it does not, or by unknown markers."""
    found: ThinkingFormat | None = getattr(engine.tokenizer, "thinking_format", None)
    return found


def phases(engine: Engine) -> frozenset[PhaseName]:
    """Returns the phases that tokens of conversations and their answers can have, by the chat template and what the engine can do."""
    rules = PhaseRules.of(getattr(engine.tokenizer, "thinking_markers", None), tool_format(engine))
    return rules.possible | frozenset[PhaseName]({"json"} if takes_grammars(engine) else ())


def can_fit(engine: Engine) -> bool:
    """Returns whether an engine fits directions by gradient."""
    return hasattr(engine, "fit")


def check_reads_monitors(engine: Engine) -> None:
    """Raises UnsupportedParameter for an engine that would ignore monitors."""
    _require(engine, getattr(engine, "reads_monitors", False), "read monitors", "monitors")


def reads_attention(engine: Engine) -> bool:
    """Returns whether an engine finds the token that attends to a phrase most."""
    return getattr(engine, "reads_attention", False)


def reading_passes(engine: Engine, position: Position) -> int:
    """Returns how many passes read a text at a position: two for the token that attends to a phrase. Raises UnsupportedParameter where
    the attention of the model cannot be read."""
    if not (isinstance(position, SpanPosition) and position.read == "attending"):
        return 1
    what = f"read the attention of {engine.info.architecture}, which the token that attends to a span needs"
    _require(engine, reads_attention(engine), what, "position")
    return 2


def unembedding_of(engine: Engine) -> SupportsUnembed:
    """Returns the engine as one that unembeds residuals. Raises UnsupportedParameter if it does not."""
    _require(engine, hasattr(engine, "unembed"), "unembed residuals, which the logit lens needs")
    return cast(SupportsUnembed, engine)


def fitting_of(engine: Engine) -> SupportsFitting:
    """Returns the engine as one that fits directions. Raises UnsupportedParameter if it does not."""
    _require(engine, can_fit(engine), "fit directions by gradient, which method 'trained' needs", "method")
    return cast(SupportsFitting, engine)


def _require(engine: Engine, able: bool, what: str, param: str | None = None) -> None:
    if not able:
        raise UnsupportedParameter(f"the engine {engine.name!r} cannot {what}", param=param)
