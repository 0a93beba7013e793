"""Request and response models of routes that read tokens: readout, logit lens, scores, activations, explanations."""

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from steering.schemas.base import Answer, ErrorDetail, Flag, Request, Whole
from steering.schemas.generation import TopLogprob
from steering.schemas.messages import (
    ACTIVATION,
    MAX_TEXTS,
    ConversationFields,
    Messages,
    Offset,
    Phases,
    PlainText,
    PromptFields,
    ScorePosition,
    SpanPosition,
    Texts,
    TextsFields,
    TokenIds,
)
from steering.schemas.steering import BatchFields, Steering
from steering.schemas.vectors import LayerList, Name
from steering.spec import HeadIndex, Hook, Layers, Measured, Number, PhaseName, exactly_one


class ReadoutRequest(TextsFields):
    """Exactly one of `texts` (each a plain text or a conversation) and `messages` (one conversation).
    phase: mean, max and last are of the tokens in these phases; each text is then a conversation that ends with an answer.
    hook: what is read: the residual, or what attention or the MLP adds to it, whose scores are not centred."""

    phase: Phases | None = None
    vectors: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64, fail_fast=True)]
    layers: Layers = "recommended"
    hook: Hook = "residual"


class ReadVector(Answer):
    """The version of a vector that was used."""

    id: str
    sha256: str


class ReadToken(Answer):
    """A token of a text that was read."""

    id: int
    text: str


class LayerScores(Answer):
    """One score per token, in natural scales, the poles at +0.5 and -0.5. mean and max leave out the first token.
    centred: false for a vector without class means, whose scores are p / kappa."""

    scores: list[Measured]
    mean: Measured
    max: Measured
    last: Measured
    centred: bool = True


class TextReadoutAnswer(Answer):
    """One text. readout: vector (by the name given) -> layer -> scores. phases: of the tokens, where the request has `phase`; null for
    what the template writes behind the answer."""

    tokens: list[ReadToken]
    phases: list[PhaseName | None] | None = None
    readout: dict[str, dict[str, LayerScores]]


class ReadoutAnswer(Answer):
    """Texts in the order given. warnings: name the texts of which nothing but the first token is read."""

    model: str
    vectors: dict[str, ReadVector]
    texts: list[TextReadoutAnswer]
    warnings: list[str] = Field(default_factory=list)


class LogitLensRequest(PromptFields):
    """Predictions of the model from every layer, at every token of the prompt.
    steering: absent is the server's default; with `[]` there is only the plain reading."""

    steering: Steering | None = None
    layers: Literal["all"] | LayerList = "all"
    top_k: Annotated[int, Field(strict=True, ge=1, le=1000)] = 5


class LensLayerAnswer(Answer):
    """One layer: at every token the most probable next tokens, best first. steered: null without steering."""

    layer: int
    plain: list[list[TopLogprob]]
    steered: list[list[TopLogprob]] | None


class LensSteering(Answer):
    """The steering of a reading. vectors: `name@version` -> SHA-256; empty without steering."""

    fingerprint: str
    vectors: dict[str, str]
    warnings: list[str]


class LogitLensAnswer(Answer):
    """Layers ascending; the last of all is the model itself."""

    model: str
    tokens: list[ReadToken]
    layers: list[LensLayerAnswer]
    steering: LensSteering


PlainTexts = Annotated[tuple[PlainText, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]


class ScoreItem(PromptFields):
    """One prompt or conversation, and texts that may follow it."""

    choices: PlainTexts


class ScoreRequest(ConversationFields):
    """`continuations` of one `prompt` (a text or token ids) or conversation (`messages`), whole `texts`, or `items`, each a
    prompt or conversation with `choices`."""

    continuations: PlainTexts | None = None
    texts: PlainTexts | None = None
    items: Annotated[tuple[ScoreItem, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)] | None = None
    steering: Steering | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "ScoreRequest":
        prompts = sum(given is not None for given in (self.prompt, self.messages))
        if (self.continuations is not None, self.texts is not None, self.items is not None).count(True) != 1:
            raise ValueError("give exactly one of 'continuations' (of 'prompt' or 'messages'), 'texts' and 'items'")
        if prompts != (self.continuations is not None):
            raise ValueError(
                "exactly one of 'prompt' and 'messages' comes with 'continuations', none with 'texts' and 'items'"
            )
        return self


class ScoredText(Answer):
    """One continuation or text. logprobs, greedy: per token; null for the first of a text, which nothing comes before.
    sum: of the logprobs. all_greedy: whether greedy decoding gives exactly these tokens; null where none was scored."""

    token_ids: list[int]
    tokens: list[str]
    text: str
    logprobs: list[Measured | None]
    sum: Measured
    greedy: list[bool | None]
    all_greedy: bool | None


class ScoredItem(Answer):
    """The choices of one item, in the order given."""

    prompt_tokens: int
    scores: list[ScoredText]


class ScoreAnswer(Answer):
    """Scores in the order given. prompt_tokens: of the prompt, 0 for texts. items: where the request has them; then
    `prompt_tokens` and `scores` are null."""

    model: str
    prompt_tokens: int | None = None
    scores: list[ScoredText] | None = None
    items: list[ScoredItem] | None = None
    steering: LensSteering


class ScoreLine(ScoreRequest, BatchFields):
    """A request of POST /v1/score."""


class ScoreResult(Answer):
    """One line of the output of a batch, in the order of the input. Either response or error is present."""

    index: int
    id: str | None = None
    response: ScoreAnswer | None = None
    error: ErrorDetail | None = None


ActivationPosition: TypeAlias = Annotated[
    Literal["last", "mean", "response_mean", "all"] | Offset | SpanPosition, ACTIVATION
]
TokenIdLists: TypeAlias = Annotated[tuple[TokenIds, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]


class ActivationsRequest(Request):
    """Exactly one of `texts`, `messages` (one conversation) and `token_ids` (a list of token ids per text).
    position: one token of each text, a mean over its tokens or those of a phrase, or `all` of them. dtype: of the numbers in the file.
    hook: the residual, or the output of attention or the MLP. head: of attention, before its output projection."""

    texts: Texts | None = None
    messages: Messages | None = None
    token_ids: TokenIdLists | None = None
    layers: Literal["all"] | LayerList = "all"
    position: ActivationPosition = "last"
    hook: Hook = "residual"
    head: HeadIndex | None = None
    steering: Steering | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    _one_source = exactly_one("texts", "messages", "token_ids")


class ActivationsAnswer(Answer):
    """The JSON form. layers: layer -> d_model numbers (of a head, as many as it has) per text, or per token of all texts with position `all`.
    offsets: then text i has rows offsets[i] to offsets[i + 1], and token_ids has one id per row."""

    model: str
    position: str | int | SpanPosition
    layers: dict[str, list[list[Measured]]]
    offsets: list[int] | None = None
    token_ids: list[int] | None = None
    steering: LensSteering


def _with_answer(phases: Phases) -> Phases:
    if "answer" not in phases:
        raise ValueError(
            "neutral text has answers only: give 'answer' among the phases, or read scores of others with POST /v1/readout"
        )
    return phases


class ExplainRequest(TextsFields):
    """Exactly one of `texts` and `messages` (one conversation). vectors: absent, those of the library.
    layers: absent, the middle of the recommended ones.
    position: the score of a text is the mean over its tokens without the first, or the largest of them (`max`), of a conversation
    without those that all neutral conversations begin with.
    threshold: the least absolute z-score of a concept that is listed; top: how many are, at most.
    phase: only tokens in these phases are read, `answer` among them; each text is then a conversation that ends with an answer.
    turns: only the assistant's turns are read, all together and each; each text is then a conversation with an answer."""

    vectors: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64, fail_fast=True)] | None = None
    phase: Annotated[Phases, AfterValidator(_with_answer)] | None = None
    turns: Flag = False
    layers: LayerList | None = None
    position: ScorePosition = "mean"
    threshold: Annotated[Number, Field(ge=0, le=1000)] = 2.0
    top: Annotated[Whole, Field(ge=1, le=100)] = 10

    @model_validator(mode="after")
    def _one_choice(self) -> "ExplainRequest":
        if self.turns and self.phase is not None:
            raise ValueError("give 'turns' or 'phase', not both")
        return self


class TurnAnswer(Answer):
    """One of the assistant's turns: a score and z as those of a text. message: its index in the conversation."""

    message: int
    tokens: int
    score: Measured
    z: Measured


class CarryingTokenAnswer(Answer):
    """A token that carries a concept. index: its position in the text. z: against the tokens of neutral text."""

    index: int
    id: int
    text: str
    z: Measured


class StandingConceptAnswer(Answer):
    """A concept that stands out. score: mean or maximum over the tokens that are read, in natural scales.
    z: its distance from the mean of neutral texts, of which the same tokens are read, in their standard deviations; null where
    all of them have the same score. tokens: those that carry it most.
    turns: null unless the request asks for them; how the score drifts."""

    vector: str
    layer: int
    score: Measured
    z: Measured
    tokens: list[CarryingTokenAnswer]
    turns: list[TurnAnswer] | None = None


class ExplainedTextAnswer(Answer):
    """One text; empty where nothing stands out."""

    tokens: int
    concepts: list[StandingConceptAnswer]


class ExplainAnswer(Answer):
    """Texts in the order given. vectors: every vector that was read, by id. neutral: how many neutral texts there are."""

    model: str
    vectors: dict[str, ReadVector]
    neutral: int
    texts: list[ExplainedTextAnswer]
    warnings: list[str]
