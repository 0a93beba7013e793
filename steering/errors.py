"""The tree of errors. Each class says when it happens and carries a stable `code`; the app maps codes to statuses.

SteeringError
├── InvalidRequest            the request cannot be right, decided before any device work
│   ├── UnsupportedParameter  known to the field, not offered here
│   ├── LimitExceeded         a stated limit plus one
│   ├── ContextLengthExceeded prompt + max_tokens do not fit the model
│   ├── VectorModelMismatch   another d_model, or another model's vector
│   └── DoseExceeded          the planned relative dose is beyond the operator's bound
├── NotFound
│   └── VectorNotFound  ProfileNotFound  ModelNotFound  JobNotFound  ConceptNotFound
├── VectorInUse               a profile still names the vector
├── InvalidApiKey  InsufficientScope
├── BodyTooLarge  UnsupportedMediaType  HostRefused
├── NonfiniteActivations      steering drove the numbers out of range
├── Overloaded                the queue is full, try again
├── RateLimited               a key is over its limit
├── Unavailable
│   └── NotReady  Draining  EngineDead  StoreUnavailable
├── OutOfMemory  StorageFull  this request does not fit
├── Interrupted               a job was cut short by a stop of the server
├── UnsupportedModel          this architecture cannot be steered (said at load)
├── ModelLoadFailed           the model could not be read
├── StoreCorrupt              a stored blob does not match its digest, or the schema is newer than the code
└── InternalError             a defect of ours
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
    code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class LimitExceeded(InvalidRequest):
    code = "limit_exceeded"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class VectorModelMismatch(InvalidRequest):
    code = "vector_model_mismatch"


class DoseExceeded(InvalidRequest):
    code = "dose_exceeded"


class NotFound(SteeringError):
    code = "not_found"


class VectorNotFound(NotFound):
    code = "vector_not_found"


class ProfileNotFound(NotFound):
    code = "profile_not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class ConceptNotFound(NotFound):
    code = "concept_not_found"


class VectorInUse(SteeringError):
    code = "vector_in_use"


class InvalidApiKey(SteeringError):
    code = "invalid_api_key"


class InsufficientScope(SteeringError):
    code = "insufficient_scope"


class BodyTooLarge(SteeringError):
    code = "body_too_large"


class UnsupportedMediaType(SteeringError):
    code = "unsupported_media_type"


class HostRefused(SteeringError):
    code = "host_refused"


class NonfiniteActivations(SteeringError):
    code = "nonfinite_activations"


class Overloaded(SteeringError):
    code = "overloaded"


class RateLimited(SteeringError):
    code = "rate_limited"


class Unavailable(SteeringError):
    code = "unavailable"


class NotReady(Unavailable):
    code = "not_ready"


class Draining(Unavailable):
    code = "draining"


class EngineDead(Unavailable):
    code = "engine_dead"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class OutOfMemory(SteeringError):
    code = "out_of_memory"


class StorageFull(SteeringError):
    code = "storage_full"


class Interrupted(SteeringError):
    code = "interrupted"


class UnsupportedModel(SteeringError):
    code = "unsupported_model"


class ModelLoadFailed(SteeringError):
    code = "model_load_failed"


class StoreCorrupt(SteeringError):
    code = "store_corrupt"


class InternalError(SteeringError):
    code = "internal_error"
