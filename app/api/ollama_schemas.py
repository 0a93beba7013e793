"""Request models of Ollama's API. Known fields that are not offered are refused by name."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from app.api.openai_schemas import Label, ModelName, RefusingRequest
from app.api.translated import TopK, continuing
from steering.pairs import ChatMessage
from steering.schemas import messages as native
from steering.schemas.base import Flag
from steering.schemas.steering import Steering
from steering.schemas.structured import Schema
from steering.spec import Number

Setting = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]
_NEWEST = ":latest"
"""The tag that Ollama's clients add to a name without one."""


def _limit(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("must be at least 1, or -1 for what fits the context")
    return tokens


class Options(RefusingRequest):
    """How tokens are chosen; the defaults are those of chat completions. steering is ours: Ollama's client sends no other extra field.

    Options of how a model is loaded cannot change an answer and are ignored.
    """

    refused: ClassVar[dict[str, Any]] = {
        "num_ctx": None,
        "num_keep": None,
        "repeat_last_n": -1,
        "tfs_z": 1.0,
        "typical_p": 1.0,
        "mirostat": 0,
        "mirostat_tau": None,
        "mirostat_eta": None,
        "penalize_newline": True,
        "logits_all": False,
        "vocab_only": False,
        "embedding_only": False,
    }
    place = "options."

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: TopK | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    presence_penalty: native.Penalty | None = None
    frequency_penalty: native.Penalty | None = None
    seed: native.Seed | None = None
    stop: native.Stop | native.Stops | None = None
    num_predict: Annotated[int, Field(strict=True, ge=-2, le=1_000_000), AfterValidator(_limit)] | None = None
    steering: Steering | None = None
    numa: Flag | None = None
    num_batch: Setting | None = None
    num_gpu: Setting | None = None
    main_gpu: Setting | None = None
    num_thread: Setting | None = None
    low_vram: Flag | None = None
    f16_kv: Flag | None = None
    use_mmap: Flag | None = None
    use_mlock: Flag | None = None


class ModelRequest(RefusingRequest):
    """A request about a model."""

    model: ModelName

    def served(self, loaded: str) -> str:
        """Returns the name of the model here, without the tag of Ollama's clients unless it is part of the name. loaded: of the
        loaded model."""
        return self.model if self.model == loaded else self.model.removesuffix(_NEWEST) or self.model


class ShowRequest(ModelRequest):
    """POST /api/show."""

    verbose: Flag | None = None


class OllamaRequest(ModelRequest):
    """Fields of both routes that generate. stream: false for a whole answer. steering may also stand in `options`."""

    refused: ClassVar[dict[str, Any]] = {"think": False, "logprobs": False, "top_logprobs": 0}

    stream: Flag | None = None
    options: Options | None = None
    format: Literal["", "json"] | Schema | None = None
    keep_alive: Number | Label | None = None
    steering: Steering | None = None

    @model_validator(mode="after")
    def _one_steering(self) -> "OllamaRequest":
        if self.steering is not None and self.options is not None and self.options.steering is not None:
            raise ValueError("give 'steering' or 'options.steering', not both")
        return self


class OllamaMessage(RefusingRequest):
    """A message of a conversation. What clients send back of an earlier answer must be empty."""

    refused: ClassVar[dict[str, Any]] = {"images": [], "tool_calls": [], "tool_name": "", "thinking": ""}

    role: Literal["system", "user", "assistant"]
    content: native.Content


class OllamaChatRequest(OllamaRequest):
    """POST /api/chat."""

    refused: ClassVar[dict[str, Any]] = {**OllamaRequest.refused, "tools": []}

    messages: Annotated[tuple[OllamaMessage, ...], Field(min_length=1, max_length=native.MAX_MESSAGES, fail_fast=True)]

    def conversation(self) -> tuple[ChatMessage, ...]:
        """Returns the messages; see `continuing`."""
        return continuing(tuple(ChatMessage(one.role, one.content) for one in self.messages))


class OllamaGenerateRequest(OllamaRequest):
    """POST /api/generate. raw: the prompt is continued as it is, without the chat template."""

    refused: ClassVar[dict[str, Any]] = {
        **OllamaRequest.refused, "suffix": "", "template": "", "context": [], "images": [], "width": None, "height": None,
        "steps": None,
    }  # fmt: skip

    prompt: native.PlainText
    system: native.Content | None = None
    raw: Flag | None = None

    @model_validator(mode="after")
    def _raw_alone(self) -> "OllamaGenerateRequest":
        if self.raw and self.system:
            raise ValueError("'raw' takes no 'system': the prompt is continued as it is")
        return self

    def conversation(self) -> str | tuple[ChatMessage, ...]:
        """Returns the text that is continued, or the conversation that is answered."""
        if self.raw:
            return self.prompt
        asked = ChatMessage("user", self.prompt)
        return (ChatMessage("system", self.system), asked) if self.system else (asked,)
