"""Base classes and number types of all request and response models: requests are strict, responses are finite."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from steering.namespaces import NAMESPACE_PATTERN
from steering.spec import Spec

T = TypeVar("T")

Whole = Annotated[int, Field(strict=True)]
"""A whole JSON number."""

Flag = Annotated[bool, Field(strict=True)]


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time must lie in the years 1 to 9999 of UTC") from None


def _written(moment: Any) -> Any:
    date = moment[4:5] == "-" if isinstance(moment, str) else isinstance(moment, datetime)
    if not date:  # pydantic takes numbers, also as text, as seconds since 1970
        raise ValueError("expected a time as text, in ISO 8601 with a time zone")
    return moment


Moment = Annotated[AwareDatetime, BeforeValidator(_written), AfterValidator(_in_utc)]
"""A time with a time zone, in UTC."""


NamespaceName = Annotated[str, Field(pattern=NAMESPACE_PATTERN)]


class Request(Spec):
    """Base of request models."""


class NamespaceQuery(Request):
    """Base of the queries of routes that read or write in a namespace. namespace: for admins; absent, that of the key."""

    namespace: NamespaceName | None = None


class WaitQuery(NamespaceQuery):
    """wait: hold the connection until the work is done, instead of answering with a job."""

    wait: bool = False


class Answer(BaseModel):
    """Base of response models."""

    model_config = ConfigDict(frozen=True)


class ErrorDetail(Answer):
    """message is for people; code is stable; param names the field it is about."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorAnswer(Answer):
    """The body of every error response, and the data of every `error` event."""

    error: ErrorDetail


class TypedErrorAnswer(Answer):
    """An error as Anthropic's clients expect it. Also the data of an `error` event."""

    type: Literal["error"]
    error: ErrorDetail


class TextErrorAnswer(Answer):
    """An error whose message is a text, as Ollama's clients expect it. Also the last line of a stream that failed."""

    error: str
    type: str
    param: str | None = None
    code: str


class Page(Answer):
    """One page of a list; `next_cursor` is opaque and null on the last page."""

    next_cursor: str | None = None


class PageQuery(Request):
    """Selects a page of a list that is not in a namespace."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(max_length=512)] | None = None


class NamespacePageQuery(PageQuery, NamespaceQuery):
    """Selects a page of a list."""
