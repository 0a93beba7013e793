"""Errors of the library. Each class has a stable `code`; the app maps classes to HTTP statuses (app/core/errors.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class SteeringError(Exception):
    """Root of the tree; `message` is for the caller, `param` names the field it is about."""

    code: ClassVar[str] = "internal_error"

    def __init_subclass__(cls, code: str | None = None) -> None:
        super().__init_subclass__()
        if code is not None:
            cls.code = code

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(SteeringError, code="invalid_request"):
    """The request cannot be right; decided before any device work."""


class UnsupportedParameter(InvalidRequest, code="unsupported_parameter"):
    """The parameter is known to the field and not offered here."""


class LimitExceeded(InvalidRequest, code="limit_exceeded"):
    """The request exceeds a stated limit."""


class ContextLengthExceeded(InvalidRequest, code="context_length_exceeded"):
    """Prompt and answer do not fit the context of the model."""


class VectorModelMismatch(InvalidRequest, code="vector_model_mismatch"):
    """The vector belongs to another model or has another d_model."""


class DoseExceeded(InvalidRequest, code="dose_exceeded"):
    """The planned relative dose is beyond the operator's bound."""


class NotNewest(InvalidRequest):
    """A version is no longer the newest one of its vector."""


class NotFound(SteeringError, code="not_found"):
    """Something named in the request does not exist."""


class VectorNotFound(NotFound, code="vector_not_found"):
    """There is no such vector."""


class ProfileNotFound(NotFound, code="profile_not_found"):
    """There is no such profile."""


class ModelNotFound(NotFound, code="model_not_found"):
    """There is no such model here."""


class JobNotFound(NotFound, code="job_not_found"):
    """There is no such job."""


class ConceptNotFound(NotFound, code="concept_not_found"):
    """There is no such starter concept."""


class LinkNotFound(NotFound, code="link_not_found"):
    """There is no such saved link."""


class KeyNotFound(NotFound, code="key_not_found"):
    """There is no key with this id."""


class VectorInUse(SteeringError, code="vector_in_use"):
    """A profile, the default steering or the policy still names the vector."""


class UnsupportedFormat(SteeringError, code="unsupported_media_type"):
    """The file is not in a format that is read."""


class NonfiniteActivations(SteeringError, code="nonfinite_activations"):
    """Numbers of the model left the range of its data type, in most cases because steering drove them there."""

    @classmethod
    def found_in(cls, what: str, *, steered: bool) -> "NonfiniteActivations":
        """Returns the error for numbers that are not finite, with what helps. what: their name in the plural."""
        if steered:
            return cls(f"steering drove the activations out of range: {what} are not finite; lower the strength")
        return cls(
            f"{what} are not finite, and nothing steers: the model leaves the range of its data type; STEERING_DTYPE sets another"
        )


class Overloaded(SteeringError, code="overloaded"):
    """A queue is full; the caller may try again."""


class Unavailable(SteeringError, code="unavailable"):
    """The server cannot do this now."""


class NotReady(Unavailable, code="not_ready"):
    """The model or the store is not ready yet."""


class EngineDead(Unavailable, code="engine_dead"):
    """The engine has stopped."""


class StoreUnavailable(Unavailable, code="store_unavailable"):
    """The database cannot be used now."""


class OutOfMemory(SteeringError, code="out_of_memory"):
    """The request does not fit into memory."""


class StorageFull(SteeringError, code="storage_full"):
    """The database is full."""


class Interrupted(SteeringError, code="interrupted"):
    """A job was ended by a stop of the server."""


class UnsupportedModel(SteeringError, code="unsupported_model"):
    """The architecture cannot be steered, which is found at load."""


class ModelLoadFailed(SteeringError, code="model_load_failed"):
    """The model could not be read."""


class StoreCorrupt(SteeringError, code="store_corrupt"):
    """A stored blob does not match its digest, or the schema is newer than the code."""


class InternalError(SteeringError, code="internal_error"):
    """A defect of this code."""


@contextmanager
def within(item: str, *, fields: bool = True) -> Iterator[None]:
    """Makes errors about a field of an item of a list name the item too: `messages` becomes `items.2.messages`, or `items.2` where
    the item has no such `fields`. `scope` is a field of the steering and stays."""
    try:
        yield
    except InvalidRequest as error:
        named = f"{item}.{error.param}" if fields and error.param else item
        raise type(error)(error.message, param="scope" if error.param == "scope" else named) from None
