"""Response models of health, version, capabilities and concepts; models of tokenizing."""

from typing import Annotated, Literal

from pydantic import Field

from steering.schemas.base import Answer, Flag, Request
from steering.schemas.messages import MAX_TOKEN_IDS, PromptFields, Text, TokenId
from steering.spec import Hook, PhaseName


class HealthAnswer(Answer):
    """The server answers (live) or can work (ready)."""

    status: Literal["ok"]


class VersionAnswer(Answer):
    """Which release this is."""

    name: str
    version: str


class ModelAnswer(Answer):
    """The loaded model. typical_norms: median residual norm after each block on neutral text. hooks: where interventions and readings
    may be. head_count: attention heads that can be read and ablated; 0: none can."""

    name: str
    architecture: str
    fingerprint: str
    revision: str | None
    d_model: int
    layers: int
    vocab_size: int
    context_length: int
    dtype: str
    device: str
    parameters: int
    chat_template: bool
    typical_norms: list[float]
    hooks: list[Hook]
    head_count: int


class CallerAnswer(Answer):
    """Who asks: the name and the scopes of the key. id: empty for a key that is not in the database, and without keys."""

    id: str
    name: str
    scopes: list[str]


class CapabilitiesAnswer(Answer):
    """What this server offers. executor: how passes run now (`eager`, `eager+kernels`, `eager+graphs`, `compiled`,
    `compiled+kernels`). kernels: how our kernels multiply and whose threads compute, as measured at the first start; null without them.
    weight_bytes: of the weights of linear layers by format (`bfloat16`, `Q4_1`, ...), empty until they are packed.
    concept_steering: whether each starter concept steers this model, which way and at what strength. judges: whom an
    evaluation may name. second_model: whether there is one for transfers. token_scopes: of `scope.token_ids` and `roles`. attending_positions: of
    positions with `read` "attending". grammars: whether
    `response_format`, `guided_regex` and `guided_grammar` are offered. tools: how the model writes calls of tools (`hermes`, `mistral`,
    `llama3_json`), null where it cannot be given any. thinking: how it marks what it thinks before it answers (`think`, `mistral`,
    `cohere`), null where it does not. thinking_is_optional: whether a request can keep it from thinking. phases: those that tokens of its
    conversations can have."""

    engine: str
    executor: str
    kernels: str | None = None
    weight_bytes: dict[str, int]
    model: ModelAnswer
    d_model: int
    layers: int
    operations: list[str]
    methods: list[str]
    conditions: list[str]
    projections: list[str]
    concepts: list[str]
    concept_steering: dict[str, str]
    judges: list[str]
    second_model: bool
    token_scopes: bool
    attending_positions: bool
    grammars: bool
    tools: str | None
    thinking: str | None
    thinking_is_optional: bool
    phases: list[PhaseName]
    limits: dict[str, int | float]
    scopes: list[str]
    key: CallerAnswer
    playground: bool


class TokenizeRequest(PromptFields):
    """texts: also each token's own text."""

    texts: Flag = False


class TokenizeAnswer(Answer):
    """Token ids of a prompt, as the model would read them."""

    tokens: list[int]
    count: int
    texts: list[str] | None = None


class DetokenizeRequest(Request):
    """Token ids."""

    tokens: Annotated[tuple[TokenId, ...], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]


class DetokenizeAnswer(Answer):
    """Their text."""

    text: str


class ConceptQuery(Request):
    """search: words that a concept shares with its name or description, the best first. kind: `starter`, `role`, `tone`, ..."""

    search: Annotated[str, Field(max_length=256)] | None = None
    kind: Annotated[str, Field(max_length=64)] | None = None


class ConceptAnswer(Answer):
    """A concept: what + and - mean, and how many pairs show it; 0 for one in words, whose pairs the loaded model writes.
    measured: by model, how it steers."""

    name: str
    kind: str
    positive: str
    negative: str
    description: str
    pairs: int
    measured: dict[str, str]


class ConceptList(Answer):
    """Concepts: the starter concepts first, then those in words; of a search by how well they match."""

    data: list[ConceptAnswer]
    next_cursor: None = None


class ConceptPair(Answer):
    """One contrasting pair."""

    positive: Text
    negative: Text
    topic: str | None = None


class ConceptDetail(ConceptAnswer):
    """A concept with its pairs."""

    data: list[ConceptPair]
