"""Errors of the library. Each class has a stable `code`; the app maps classes to HTTP statuses (app/http/errors.py).

SteeringError
├── InvalidRequest            the request cannot be right, decided before any device work
│   ├── UnsupportedParameter  known to the field, not offered here
│   ├── LimitExceeded         a stated limit plus one
│   ├── ContextLengthExceeded prompt + max_tokens do not fit the model
│   ├── VectorModelMismatch   another d_model, or another model's vector
│   └── DoseExceeded          the planned relative dose is beyond the operator's bound
├── NotFound
│   └── VectorNotFound  ProfileNotFound  ModelNotFound  JobNotFound  ConceptNotFound  LinkNotFound
├── VectorInUse               a profile still names the vector
├── UnsupportedFormat         a file is not in a format that is read
├── NonfiniteActivations      steering drove the numbers out of range
├── Overloaded                the queue is full, try again
├── Unavailable
│   └── NotReady  EngineDead  StoreUnavailable
├── OutOfMemory  StorageFull  this request does not fit
├── Interrupted               a job was ended by a stop of the server
├── UnsupportedModel          this architecture cannot be steered (found at load)
├── ModelLoadFailed           the model could not be read
├── StoreCorrupt              a stored blob does not match its digest, or the schema is newer than the code
└── InternalError             a defect of this code
"""

from typing import ClassVar


class SteeringError(Exception):
    """Root of the tree; `message` is for the caller, `param` names the field it is about."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(SteeringError):
    """The request cannot be right; decided before any device work."""

    code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    """The parameter is known and not offered here."""

    code = "unsupported_parameter"


class LimitExceeded(InvalidRequest):
    """The request exceeds a stated limit."""

    code = "limit_exceeded"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit the context of the model."""

    code = "context_length_exceeded"


class VectorModelMismatch(InvalidRequest):
    """The vector belongs to another model or has another d_model."""

    code = "vector_model_mismatch"


class DoseExceeded(InvalidRequest):
    """The planned relative dose is beyond the operator's bound."""

    code = "dose_exceeded"


class NotFound(SteeringError):
    """Something named in the request does not exist."""

    code = "not_found"


class VectorNotFound(NotFound):
    """There is no such vector."""

    code = "vector_not_found"


class ProfileNotFound(NotFound):
    """There is no such profile."""

    code = "profile_not_found"


class ModelNotFound(NotFound):
    """There is no such model here."""

    code = "model_not_found"


class JobNotFound(NotFound):
    """There is no such job."""

    code = "job_not_found"


class ConceptNotFound(NotFound):
    """There is no such starter concept."""

    code = "concept_not_found"


class LinkNotFound(NotFound):
    """There is no such saved link."""

    code = "link_not_found"


class VectorInUse(SteeringError):
    """A profile or the default steering still names the vector."""

    code = "vector_in_use"


class UnsupportedFormat(SteeringError):
    """The file is not in a format that is read."""

    code = "unsupported_media_type"


class NonfiniteActivations(SteeringError):
    """Steering drove the activations out of range."""

    code = "nonfinite_activations"


class Overloaded(SteeringError):
    """A queue is full; the caller may try again."""

    code = "overloaded"


class Unavailable(SteeringError):
    """The server cannot do this now."""

    code = "unavailable"


class NotReady(Unavailable):
    """The model or the store is not ready yet."""

    code = "not_ready"


class EngineDead(Unavailable):
    """The engine has stopped."""

    code = "engine_dead"


class StoreUnavailable(Unavailable):
    """The database cannot be used now."""

    code = "store_unavailable"


class OutOfMemory(SteeringError):
    """The request does not fit into memory."""

    code = "out_of_memory"


class StorageFull(SteeringError):
    """The database is full."""

    code = "storage_full"


class Interrupted(SteeringError):
    """A job was ended by a stop of the server."""

    code = "interrupted"


class UnsupportedModel(SteeringError):
    """The architecture cannot be steered."""

    code = "unsupported_model"


class ModelLoadFailed(SteeringError):
    """The model could not be read."""

    code = "model_load_failed"


class StoreCorrupt(SteeringError):
    """Stored data is damaged, or written by a newer version."""

    code = "store_corrupt"


class InternalError(SteeringError):
    """A defect of this code."""

    code = "internal_error"
