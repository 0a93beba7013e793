# fmt: off
# ruff: noqa: I001
"""The types of api.py: written by `python -m tools.write_client`, not by hand."""

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any, Literal

from steering.client.connection import AsyncConnection, Connection
from steering.client.routes import JsonObject
from steering.client.results import Choices, Comparison, DoseResponse, LatentMap, LayerSweep, Readout, Report, Vector
from steering.schemas.choices import ChoiceItem
from steering.schemas.comparison import ArmErrorAnswer, ArmFields
from steering.schemas.evaluation import CalibrationAnswer, JudgeRequest, ThresholdsFields
from steering.schemas.extraction import EffectRequest, Pair, Training, TraitDescription, TransferAnswer
from steering.schemas.generation import BatchResult, FlagCondition, GenerateAnswer, TokenPiece
from steering.schemas.governance import AuditPage, ChangeLimitsFields, KeyAnswer, KeyLimitsFields, KeyList, MonitorDetail, MonitorList, MonitorSpec, NewKeyAnswer, PolicyAnswer, SteeringLimits
from steering.schemas.latent_space import ClustersAnswer, DictionariesAnswer, DictionarySearchAnswer
from steering.schemas.messages import JsonObjectFormat, JsonSchemaFormat, Message, SpanPosition, TextFormat
from steering.schemas.reading import ActivationsAnswer, ExplainAnswer, LogitLensAnswer, ScoreAnswer, ScoreItem, ScoreResult
from steering.schemas.resources import JobAnswer, JobPage, LinkAnswer, LinkPage, LinkState, ProfileAnswer, ProfileList
from steering.schemas.steering import DefaultSteeringAnswer, ProfileSteering, Record
from steering.schemas.system import CapabilitiesAnswer, ConceptDetail, ConceptList, DetokenizeAnswer, HealthAnswer, TokenizeAnswer, VersionAnswer
from steering.schemas.vectors import MapNumbers, SimilarAnswer, Term, VectorExport, VectorPageAnswer, VectorVersionsAnswer
from steering.spec import InterventionSpec, LayerRange

class Api:
    """Every route as a method."""

class Client(Connection, Api):
    """The synchronous client; `__init__` documents its options."""

    def generate(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., flag: Sequence[FlagCondition | JsonObject] | None = ...) -> GenerateAnswer:
        """Generates from one prompt: a text, token ids, or `messages`."""

    def generate_stream(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., flag: Sequence[FlagCondition | JsonObject] | None = ...) -> Generator[TokenPiece | GenerateAnswer]:
        """Streams a generation: a TokenPiece per token, then the complete response."""

    def compare(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., arms: Sequence[ArmFields | JsonObject] | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., intervention: InterventionSpec | JsonObject | None = ..., strengths: Sequence[float] | None = ..., baseline: str | None = ...) -> Comparison:
        """Generates from one prompt with several arms, one seed and one batch, and measures what steering changed."""

    def compare_stream(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., arms: Sequence[ArmFields | JsonObject] | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., intervention: InterventionSpec | JsonObject | None = ..., strengths: Sequence[float] | None = ..., baseline: str | None = ...) -> Generator[TokenPiece | ArmErrorAnswer | Comparison]:
        """Streams a comparison: TokenPieces of its arms, an ArmErrorAnswer where one ends, the response last."""

    def replay(self, record: Record | JsonObject, *, directions: Sequence[JsonObject] | None = ...) -> GenerateAnswer:
        """Generates the same tokens again from the `steering.record` of an earlier response.

        directions: those it was given inline, as they stood in place of a name.
        """

    def start_batch(self, content: bytes | Sequence[JsonObject]) -> JobAnswer:
        """Starts answering many prompts: JSON lines, or a list of bodies of `generate` with an `id` if wanted.

        Follow the job with `job_events` and read the results with `job_output`.
        """

    def start_score_batch(self, content: bytes | Sequence[JsonObject]) -> JobAnswer:
        """Starts scoring many requests: JSON lines, or a list of bodies of `score`; read the results with `score_output`."""

    def tokenize(self, prompt: str | Sequence[int] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., texts: bool | None = ...) -> TokenizeAnswer:
        """Returns the token ids of a prompt; `texts` adds the text of each token."""

    def detokenize(self, tokens: Sequence[int]) -> DetokenizeAnswer:
        """Returns the text of token ids."""

    def register_vector(self, name: str, directions: Mapping[str, Sequence[float]] | None = ..., *, description: str | None = ..., tags: Sequence[str] | None = ..., scale: Mapping[str, float] | None = ..., maps: Mapping[str, MapNumbers | JsonObject] | None = ...) -> Vector:
        """Stores given directions, d_model numbers per layer, given maps, or both, as the next version of a name."""

    def extract_vector(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., concept: str | None = ..., positive: Sequence[str | Sequence[Message | JsonObject]] | None = ..., negative: Sequence[str | Sequence[Message | JsonObject]] | None = ..., positive_topics: Sequence[str] | None = ..., negative_topics: Sequence[str] | None = ..., describe: TraitDescription | JsonObject | None = ..., method: str | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., phase: Sequence[str] | None = ..., card_position: Literal["max"] | None = ..., holdout: float | None = ..., seed: int | None = ..., training: Training | JsonObject | None = ...) -> Vector:
        """Extracts a vector from contrasting texts as a job, and waits for it however long it takes."""

    def start_extraction(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., concept: str | None = ..., positive: Sequence[str | Sequence[Message | JsonObject]] | None = ..., negative: Sequence[str | Sequence[Message | JsonObject]] | None = ..., positive_topics: Sequence[str] | None = ..., negative_topics: Sequence[str] | None = ..., describe: TraitDescription | JsonObject | None = ..., method: str | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., phase: Sequence[str] | None = ..., card_position: Literal["max"] | None = ..., holdout: float | None = ..., seed: int | None = ..., training: Training | JsonObject | None = ...) -> JobAnswer:
        """Starts an extraction as a job; follow it with `job_events`."""

    def distil_vector(self, name: str, instruction: str | None = ..., *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., prompts: Sequence[str] | None = ..., layers: Sequence[int] | None = ..., rank: int | None = ..., max_tokens: int | None = ..., holdout: float | None = ..., seed: int | None = ...) -> Vector:
        """Distils an instruction, or the `concept` of that name, into a vector with a map for the operation `apply`, and waits for it."""

    def start_distil(self, name: str, instruction: str | None = ..., *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., prompts: Sequence[str] | None = ..., layers: Sequence[int] | None = ..., rank: int | None = ..., max_tokens: int | None = ..., holdout: float | None = ..., seed: int | None = ...) -> JobAnswer:
        """Starts distilling as a job; follow it with `job_events`."""

    def transfer_vector(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., anchors: Sequence[str | Sequence[Message | JsonObject]] | None = ..., direction: Sequence[float] | None = ..., from_layer: int | None = ..., to_layer: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., holdout: float | None = ..., seed: int | None = ..., effect: EffectRequest | JsonObject | None = ...) -> TransferAnswer:
        """Carries a direction of the server's second model to the loaded one, and waits for it."""

    def start_transfer(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., anchors: Sequence[str | Sequence[Message | JsonObject]] | None = ..., direction: Sequence[float] | None = ..., from_layer: int | None = ..., to_layer: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., holdout: float | None = ..., seed: int | None = ..., effect: EffectRequest | JsonObject | None = ...) -> JobAnswer:
        """Starts a transfer as a job; follow it with `job_events`."""

    def combine_vectors(self, name: str, terms: Sequence[Term | JsonObject], *, description: str | None = ..., tags: Sequence[str] | None = ..., orthogonal_to: Sequence[str] | None = ...) -> Vector:
        """Stores a weighted sum of vectors, orthogonal to those named in `orthogonal_to`."""

    def import_vector(self, content: bytes, *, name: str | None = ...) -> Vector:
        """Stores the vector of one safetensors file, under its own name or another."""

    def list_vectors(self, *, limit: int | None = ..., cursor: str | None = ..., tag: str | None = ..., method: str | None = ..., search: str | None = ...) -> VectorPageAnswer:
        """Lists the newest version of each name; continue with `cursor=page.next_cursor`."""

    def get_vector(self, name: str) -> Vector:
        """Returns metadata and quality card of `name` or `name@version`."""

    def similar_vectors(self, name: str) -> SimilarAnswer:
        """Returns the cosine with every other vector."""

    def get_directions(self, name: str, layers: str | Sequence[int] | None = ...) -> dict[str, list[float]]:
        """Returns the unit directions by layer."""

    def export_vector(self, name: str) -> bytes:
        """Exports a vector as one safetensors file."""

    def export_control_vector(self, name: str, layers: str | Sequence[int] | None = ...) -> bytes:
        """Exports a vector as a llama.cpp control vector (GGUF). llama.cpp adds every direction in the file at its scale."""

    def export_vector_json(self, name: str) -> VectorExport:
        """Exports a vector as JSON, with its directions."""

    def describe_vector(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ...) -> Vector:
        """Changes description and tags of a vector."""

    def list_versions(self, name: str, *, limit: int | None = ..., before: int | None = ...) -> VectorVersionsAnswer:
        """Lists the versions of a vector, newest first, below `before` if given."""

    def delete_vector(self, name: str, *, version: int | None = ..., force: bool | None = ...) -> None:
        """Deletes all versions, or one; `force` deletes a vector that a profile uses."""

    def readout(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., phase: Sequence[str] | None = ..., vectors: Sequence[str], layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., hook: Literal["residual", "attention", "mlp"] | None = ...) -> Readout:
        """Measures each vector at every token of texts, or of one conversation (`messages`)."""

    def latent_space(self, texts: Sequence[str | Sequence[Message | JsonObject]], *, labels: Sequence[str] | None = ..., groups: Sequence[str] | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., method: str | None = ..., dims: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., vectors: Sequence[str] | None = ..., path: int | None = ..., embeddings: bool | None = ..., seed: int | None = ...) -> LatentMap:
        """Projects the activations of texts to two or three dimensions: one point per text and layer."""

    def logit_lens(self, prompt: str | Sequence[int] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., top_k: int | None = ...) -> LogitLensAnswer:
        """Predicts the next token from every layer, at every token of a prompt, unsteered and steered."""

    def activations(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., token_ids: Sequence[Sequence[int]] | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean", "all"] | int | SpanPosition | JsonObject | None = ..., hook: Literal["residual", "attention", "mlp"] | None = ..., head: int | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., dtype: Literal["float32", "float16", "bfloat16"] | None = ...) -> bytes:
        """Returns the residual stream of texts, or what another `hook` gives, as a safetensors file; read it with `safetensors.numpy.load`."""

    def activations_json(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., token_ids: Sequence[Sequence[int]] | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean", "all"] | int | SpanPosition | JsonObject | None = ..., hook: Literal["residual", "attention", "mlp"] | None = ..., head: int | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., dtype: Literal["float32", "float16", "bfloat16"] | None = ...) -> ActivationsAnswer:
        """Returns the residual stream of a few texts as lists of numbers."""

    def score(self, prompt: str | Sequence[int] | None = ..., continuations: Sequence[str] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., texts: Sequence[str] | None = ..., items: Sequence[ScoreItem | JsonObject] | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ...) -> ScoreAnswer:
        """Returns log-probabilities of continuations of a prompt or conversation, of whole texts, or of the choices of many items."""

    def explain(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., vectors: Sequence[str] | None = ..., phase: Sequence[str] | None = ..., turns: bool | None = ..., layers: Sequence[int] | None = ..., position: Literal["mean", "max"] | None = ..., threshold: float | None = ..., top: int | None = ...) -> ExplainAnswer:
        """Returns the concepts of the library, or of `vectors`, that stand out in texts, or in one conversation, against neutral text."""

    def clusters(self, texts: Sequence[str | Sequence[Message | JsonObject]], *, layer: int | None = ..., method: Literal["kmeans", "hdbscan"] | None = ..., clusters: int | None = ..., min_size: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., examples: int | None = ..., seed: int | None = ...) -> ClustersAnswer:
        """Groups texts without labels by their activations at one layer."""

    def list_dictionaries(self) -> DictionariesAnswer:
        """Lists the dictionaries of the server."""

    def search_dictionary(self, name: str, *, vector: str | None = ..., texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., against: Sequence[str | Sequence[Message | JsonObject]] | None = ..., top: int | None = ..., min_output_score: float | None = ...) -> DictionarySearchAnswer:
        """Finds features near a vector, or more active in texts than in others."""

    def feature_vector(self, dictionary: str, name: str, feature: int, *, description: str | None = ..., tags: Sequence[str] | None = ...) -> Vector:
        """Stores a feature of a dictionary as the next version of a vector."""

    def layer_sweep(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., strengths: Sequence[float] | None = ..., seed: int | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., vectors: Sequence[str] | None = ..., operations: Sequence[str] | None = ..., unit: Literal["scale", "kl"] | None = ...) -> LayerSweep:
        """Finds the layer at which a vector changes text most before it breaks; with `unit="kl"` also which of several vectors and operations, at equal KL. Waits for the result."""

    def calibrate(self, vector: str, *, operation: Literal["add", "apply"] | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., seed: int | None = ..., save: bool | None = ...) -> CalibrationAnswer:
        """Finds the strengths that change the predictions on neutral text by 1 nat; with `save` unit `kl` can be used. Waits for the result."""

    def dose_response(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., strengths: Sequence[float] | None = ..., seed: int | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., random_directions: int | None = ..., judge: JudgeRequest | JsonObject | None = ..., save: bool | None = ...) -> DoseResponse:
        """Measures effect and damage by strength. Waits for the result; `save` stores it on the vector's card."""

    def report(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., strength: float | None = ..., direction: Literal["up", "down"] | None = ..., seeds: Sequence[int] | None = ..., samples: int | None = ..., varied: int | None = ..., side_effects: Sequence[str] | None = ..., thresholds: ThresholdsFields | JsonObject | None = ...) -> Report:
        """Judges steering at a fixed operating point by three gates. Waits for the result, which takes minutes."""

    def start_report(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., strength: float | None = ..., direction: Literal["up", "down"] | None = ..., seeds: Sequence[int] | None = ..., samples: int | None = ..., varied: int | None = ..., side_effects: Sequence[str] | None = ..., thresholds: ThresholdsFields | JsonObject | None = ...) -> JobAnswer:
        """Starts a deployment report as a job; follow it with `job_events`."""

    def choices(self, items: Sequence[ChoiceItem | JsonObject], *, steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ...) -> Choices:
        """Measures multiple choice on own items, {"question", "choices", "answer"}, without and with steering. Waits for the result."""

    def start_choices(self, items: Sequence[ChoiceItem | JsonObject], *, steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ...) -> JobAnswer:
        """Starts an evaluation of multiple choice as a job."""

    def start_evaluation(self, kind: Literal["layer_sweep"] | Literal["dose_response"] | Literal["calibration"], vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., strengths: Sequence[float] | None = ..., seed: int | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., vectors: Sequence[str] | None = ..., operations: Sequence[str] | None = ..., unit: Literal["scale", "kl"] | None = ..., random_directions: int | None = ..., judge: JudgeRequest | JsonObject | None = ..., save: bool | None = ..., operation: Literal["add", "apply"] | None = ...) -> JobAnswer:
        """Starts an evaluation as a job; follow it with `job_events`."""

    def put_profile(self, name: str, interventions: Sequence[InterventionSpec | JsonObject], *, description: str | None = ...) -> ProfileAnswer:
        """Stores a named list of interventions."""

    def get_profile(self, name: str) -> ProfileAnswer:
        """Returns one profile."""

    def delete_profile(self, name: str) -> None:
        """Deletes a profile, not the vectors it names."""

    def list_profiles(self, *, limit: int | None = ..., cursor: str | None = ...) -> ProfileList:
        """Lists profiles by name."""

    def set_default_steering(self, interventions: Sequence[InterventionSpec | JsonObject]) -> DefaultSteeringAnswer:
        """Sets the steering of requests that name none."""

    def get_default_steering(self) -> DefaultSteeringAnswer:
        """Returns the default steering; `interventions` is None when none is set."""

    def clear_default_steering(self) -> None:
        """Removes the default steering."""

    def list_jobs(self, *, limit: int | None = ..., cursor: str | None = ...) -> JobPage:
        """Lists jobs, newest first, without their results."""

    def get_job(self, job_id: str) -> JobAnswer:
        """Returns one job."""

    def cancel_job(self, job_id: str) -> JobAnswer:
        """Cancels a job. A finished job is unchanged."""

    def job_events(self, job_id: str) -> Generator[JobAnswer]:
        """Streams the progress of a job; the finished job is last."""

    def job_output(self, job_id: str) -> list[BatchResult]:
        """Returns the results of a batch in order, also while it runs."""

    def score_output(self, job_id: str) -> list[ScoreResult]:
        """Returns the results of a batch of scores in order, also while it runs."""

    def save_link(self, view: Literal["compare", "space", "read"], state: JsonObject) -> LinkAnswer:
        """Saves the state of a view of the playground; whoever has the `url` of the answer and a key opens it."""

    def get_link(self, link_id: str) -> LinkState:
        """Returns the state that a link was saved with."""

    def delete_link(self, link_id: str) -> None:
        """Deletes a link."""

    def list_links(self, *, limit: int | None = ..., cursor: str | None = ...) -> LinkPage:
        """Lists the links of the namespace (in `shared` of the key), newest first."""

    def capabilities(self) -> CapabilitiesAnswer:
        """Returns the loaded model, the available operations and methods, and every limit."""

    def health(self) -> HealthAnswer:
        """Returns when the server is ready. Raises ApiError with the reason when it is not."""

    def version(self) -> VersionAnswer:
        """Returns the version of the server."""

    def openapi(self) -> dict[str, Any]:
        """Returns the OpenAPI document."""

    def list_concepts(self, search: str | None = ..., *, kind: str | None = ...) -> ConceptList:
        """Lists the starter concepts and those in words, or the ones that match a text, the best first."""

    def get_concept(self, name: str) -> ConceptDetail:
        """Returns one concept; a starter concept with its pairs."""

    def list_keys(self) -> KeyList:
        """Lists the keys of the database."""

    def create_key(self, name: str, scopes: Sequence[str], *, limits: KeyLimitsFields | JsonObject | None = ..., expires_at: str | None = ..., namespace: str | None = ...) -> NewKeyAnswer:
        """Creates a key; the result is the only place where it is shown. namespace: of what it makes, by default `shared`."""

    def change_key(self, key_id: str, *, name: str | None = ..., scopes: Sequence[str] | None = ..., limits: ChangeLimitsFields | JsonObject | None = ..., expires_at: str | None = ..., namespace: str | None = ..., force: bool | None = ..., never_expires: bool | None = ..., if_match: str | None = ...) -> KeyAnswer:
        """Changes a key. Limits that are not given stay, None removes one. never_expires: removes its expiry.
        force: also where no admin key would remain.

        if_match: the `etag` of the key as it was read; the server refuses with 412 where it has changed since.
        """

    def rotate_key(self, key_id: str, *, old_valid_seconds: int | None = ..., if_match: str | None = ...) -> NewKeyAnswer:
        """Gives a key a new secret, which only the result shows. old_valid_seconds: how long the old one is valid beside it."""

    def delete_key(self, key_id: str, *, force: bool | None = ..., cancel_jobs: bool | None = ...) -> None:
        """Deletes a key. force: also where no admin key would remain. cancel_jobs: its unfinished jobs are cancelled."""

    def read_audit(self, *, limit: int | None = ..., cursor: str | None = ...) -> AuditPage:
        """Lists changes, newest first."""

    def set_policy(self, *, mandatory: Sequence[InterventionSpec | JsonObject] | None = ..., monitors: Sequence[MonitorSpec | JsonObject] | None = ..., limits: SteeringLimits | JsonObject | None = ...) -> PolicyAnswer:
        """Sets the policy of all traffic as a whole: what is absent is removed."""

    def get_policy(self) -> PolicyAnswer:
        """Returns the policy; without one everything in it is empty."""

    def clear_policy(self) -> None:
        """Removes the policy."""

    def list_monitors(self) -> MonitorList:
        """Lists the monitors of the policy with their counts."""

    def get_monitor(self, name: str) -> MonitorDetail:
        """Returns one monitor with its latest raises."""


class AsyncClient(AsyncConnection, Api):
    """The client for asyncio. It has the same methods and options; calls are awaited, streams are asynchronous generators."""

    async def generate(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., flag: Sequence[FlagCondition | JsonObject] | None = ...) -> GenerateAnswer:
        """Generates from one prompt: a text, token ids, or `messages`."""

    def generate_stream(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., flag: Sequence[FlagCondition | JsonObject] | None = ...) -> AsyncGenerator[TokenPiece | GenerateAnswer]:
        """Streams a generation: a TokenPiece per token, then the complete response."""

    async def compare(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., arms: Sequence[ArmFields | JsonObject] | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., intervention: InterventionSpec | JsonObject | None = ..., strengths: Sequence[float] | None = ..., baseline: str | None = ...) -> Comparison:
        """Generates from one prompt with several arms, one seed and one batch, and measures what steering changed."""

    def compare_stream(self, prompt: str | Sequence[int] | None = ..., *, response_format: TextFormat | JsonObject | JsonObjectFormat | JsonSchemaFormat | None = ..., guided_regex: str | None = ..., guided_grammar: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ..., repetition_penalty: float | None = ..., presence_penalty: float | None = ..., frequency_penalty: float | None = ..., logit_bias: Mapping[str, float] | None = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ..., n: int | None = ..., logprobs: bool | int | None = ..., readout: Sequence[str] | None = ..., messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., arms: Sequence[ArmFields | JsonObject] | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., intervention: InterventionSpec | JsonObject | None = ..., strengths: Sequence[float] | None = ..., baseline: str | None = ...) -> AsyncGenerator[TokenPiece | ArmErrorAnswer | Comparison]:
        """Streams a comparison: TokenPieces of its arms, an ArmErrorAnswer where one ends, the response last."""

    async def replay(self, record: Record | JsonObject, *, directions: Sequence[JsonObject] | None = ...) -> GenerateAnswer:
        """Generates the same tokens again from the `steering.record` of an earlier response.

        directions: those it was given inline, as they stood in place of a name.
        """

    async def start_batch(self, content: bytes | Sequence[JsonObject]) -> JobAnswer:
        """Starts answering many prompts: JSON lines, or a list of bodies of `generate` with an `id` if wanted.

        Follow the job with `job_events` and read the results with `job_output`.
        """

    async def start_score_batch(self, content: bytes | Sequence[JsonObject]) -> JobAnswer:
        """Starts scoring many requests: JSON lines, or a list of bodies of `score`; read the results with `score_output`."""

    async def tokenize(self, prompt: str | Sequence[int] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., texts: bool | None = ...) -> TokenizeAnswer:
        """Returns the token ids of a prompt; `texts` adds the text of each token."""

    async def detokenize(self, tokens: Sequence[int]) -> DetokenizeAnswer:
        """Returns the text of token ids."""

    async def register_vector(self, name: str, directions: Mapping[str, Sequence[float]] | None = ..., *, description: str | None = ..., tags: Sequence[str] | None = ..., scale: Mapping[str, float] | None = ..., maps: Mapping[str, MapNumbers | JsonObject] | None = ...) -> Vector:
        """Stores given directions, d_model numbers per layer, given maps, or both, as the next version of a name."""

    async def extract_vector(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., concept: str | None = ..., positive: Sequence[str | Sequence[Message | JsonObject]] | None = ..., negative: Sequence[str | Sequence[Message | JsonObject]] | None = ..., positive_topics: Sequence[str] | None = ..., negative_topics: Sequence[str] | None = ..., describe: TraitDescription | JsonObject | None = ..., method: str | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., phase: Sequence[str] | None = ..., card_position: Literal["max"] | None = ..., holdout: float | None = ..., seed: int | None = ..., training: Training | JsonObject | None = ...) -> Vector:
        """Extracts a vector from contrasting texts as a job, and waits for it however long it takes."""

    async def start_extraction(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., concept: str | None = ..., positive: Sequence[str | Sequence[Message | JsonObject]] | None = ..., negative: Sequence[str | Sequence[Message | JsonObject]] | None = ..., positive_topics: Sequence[str] | None = ..., negative_topics: Sequence[str] | None = ..., describe: TraitDescription | JsonObject | None = ..., method: str | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., phase: Sequence[str] | None = ..., card_position: Literal["max"] | None = ..., holdout: float | None = ..., seed: int | None = ..., training: Training | JsonObject | None = ...) -> JobAnswer:
        """Starts an extraction as a job; follow it with `job_events`."""

    async def distil_vector(self, name: str, instruction: str | None = ..., *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., prompts: Sequence[str] | None = ..., layers: Sequence[int] | None = ..., rank: int | None = ..., max_tokens: int | None = ..., holdout: float | None = ..., seed: int | None = ...) -> Vector:
        """Distils an instruction, or the `concept` of that name, into a vector with a map for the operation `apply`, and waits for it."""

    async def start_distil(self, name: str, instruction: str | None = ..., *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., prompts: Sequence[str] | None = ..., layers: Sequence[int] | None = ..., rank: int | None = ..., max_tokens: int | None = ..., holdout: float | None = ..., seed: int | None = ...) -> JobAnswer:
        """Starts distilling as a job; follow it with `job_events`."""

    async def transfer_vector(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., anchors: Sequence[str | Sequence[Message | JsonObject]] | None = ..., direction: Sequence[float] | None = ..., from_layer: int | None = ..., to_layer: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., holdout: float | None = ..., seed: int | None = ..., effect: EffectRequest | JsonObject | None = ...) -> TransferAnswer:
        """Carries a direction of the server's second model to the loaded one, and waits for it."""

    async def start_transfer(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ..., concept: str | None = ..., pairs: Sequence[Pair | JsonObject] | None = ..., anchors: Sequence[str | Sequence[Message | JsonObject]] | None = ..., direction: Sequence[float] | None = ..., from_layer: int | None = ..., to_layer: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., holdout: float | None = ..., seed: int | None = ..., effect: EffectRequest | JsonObject | None = ...) -> JobAnswer:
        """Starts a transfer as a job; follow it with `job_events`."""

    async def combine_vectors(self, name: str, terms: Sequence[Term | JsonObject], *, description: str | None = ..., tags: Sequence[str] | None = ..., orthogonal_to: Sequence[str] | None = ...) -> Vector:
        """Stores a weighted sum of vectors, orthogonal to those named in `orthogonal_to`."""

    async def import_vector(self, content: bytes, *, name: str | None = ...) -> Vector:
        """Stores the vector of one safetensors file, under its own name or another."""

    async def list_vectors(self, *, limit: int | None = ..., cursor: str | None = ..., tag: str | None = ..., method: str | None = ..., search: str | None = ...) -> VectorPageAnswer:
        """Lists the newest version of each name; continue with `cursor=page.next_cursor`."""

    async def get_vector(self, name: str) -> Vector:
        """Returns metadata and quality card of `name` or `name@version`."""

    async def similar_vectors(self, name: str) -> SimilarAnswer:
        """Returns the cosine with every other vector."""

    async def get_directions(self, name: str, layers: str | Sequence[int] | None = ...) -> dict[str, list[float]]:
        """Returns the unit directions by layer."""

    async def export_vector(self, name: str) -> bytes:
        """Exports a vector as one safetensors file."""

    async def export_control_vector(self, name: str, layers: str | Sequence[int] | None = ...) -> bytes:
        """Exports a vector as a llama.cpp control vector (GGUF). llama.cpp adds every direction in the file at its scale."""

    async def export_vector_json(self, name: str) -> VectorExport:
        """Exports a vector as JSON, with its directions."""

    async def describe_vector(self, name: str, *, description: str | None = ..., tags: Sequence[str] | None = ...) -> Vector:
        """Changes description and tags of a vector."""

    async def list_versions(self, name: str, *, limit: int | None = ..., before: int | None = ...) -> VectorVersionsAnswer:
        """Lists the versions of a vector, newest first, below `before` if given."""

    async def delete_vector(self, name: str, *, version: int | None = ..., force: bool | None = ...) -> None:
        """Deletes all versions, or one; `force` deletes a vector that a profile uses."""

    async def readout(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., phase: Sequence[str] | None = ..., vectors: Sequence[str], layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., hook: Literal["residual", "attention", "mlp"] | None = ...) -> Readout:
        """Measures each vector at every token of texts, or of one conversation (`messages`)."""

    async def latent_space(self, texts: Sequence[str | Sequence[Message | JsonObject]], *, labels: Sequence[str] | None = ..., groups: Sequence[str] | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., method: str | None = ..., dims: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., vectors: Sequence[str] | None = ..., path: int | None = ..., embeddings: bool | None = ..., seed: int | None = ...) -> LatentMap:
        """Projects the activations of texts to two or three dimensions: one point per text and layer."""

    async def logit_lens(self, prompt: str | Sequence[int] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., top_k: int | None = ...) -> LogitLensAnswer:
        """Predicts the next token from every layer, at every token of a prompt, unsteered and steered."""

    async def activations(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., token_ids: Sequence[Sequence[int]] | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean", "all"] | int | SpanPosition | JsonObject | None = ..., hook: Literal["residual", "attention", "mlp"] | None = ..., head: int | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., dtype: Literal["float32", "float16", "bfloat16"] | None = ...) -> bytes:
        """Returns the residual stream of texts, or what another `hook` gives, as a safetensors file; read it with `safetensors.numpy.load`."""

    async def activations_json(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., token_ids: Sequence[Sequence[int]] | None = ..., layers: Literal["all"] | Sequence[int] | None = ..., position: Literal["last", "mean", "response_mean", "all"] | int | SpanPosition | JsonObject | None = ..., hook: Literal["residual", "attention", "mlp"] | None = ..., head: int | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., dtype: Literal["float32", "float16", "bfloat16"] | None = ...) -> ActivationsAnswer:
        """Returns the residual stream of a few texts as lists of numbers."""

    async def score(self, prompt: str | Sequence[int] | None = ..., continuations: Sequence[str] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., continue_final_message: bool | None = ..., texts: Sequence[str] | None = ..., items: Sequence[ScoreItem | JsonObject] | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ...) -> ScoreAnswer:
        """Returns log-probabilities of continuations of a prompt or conversation, of whole texts, or of the choices of many items."""

    async def explain(self, texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., *, messages: Sequence[Message | JsonObject] | None = ..., vectors: Sequence[str] | None = ..., phase: Sequence[str] | None = ..., turns: bool | None = ..., layers: Sequence[int] | None = ..., position: Literal["mean", "max"] | None = ..., threshold: float | None = ..., top: int | None = ...) -> ExplainAnswer:
        """Returns the concepts of the library, or of `vectors`, that stand out in texts, or in one conversation, against neutral text."""

    async def clusters(self, texts: Sequence[str | Sequence[Message | JsonObject]], *, layer: int | None = ..., method: Literal["kmeans", "hdbscan"] | None = ..., clusters: int | None = ..., min_size: int | None = ..., position: Literal["last", "mean", "response_mean"] | int | SpanPosition | JsonObject | None = ..., examples: int | None = ..., seed: int | None = ...) -> ClustersAnswer:
        """Groups texts without labels by their activations at one layer."""

    async def list_dictionaries(self) -> DictionariesAnswer:
        """Lists the dictionaries of the server."""

    async def search_dictionary(self, name: str, *, vector: str | None = ..., texts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., against: Sequence[str | Sequence[Message | JsonObject]] | None = ..., top: int | None = ..., min_output_score: float | None = ...) -> DictionarySearchAnswer:
        """Finds features near a vector, or more active in texts than in others."""

    async def feature_vector(self, dictionary: str, name: str, feature: int, *, description: str | None = ..., tags: Sequence[str] | None = ...) -> Vector:
        """Stores a feature of a dictionary as the next version of a vector."""

    async def layer_sweep(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., strengths: Sequence[float] | None = ..., seed: int | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., vectors: Sequence[str] | None = ..., operations: Sequence[str] | None = ..., unit: Literal["scale", "kl"] | None = ...) -> LayerSweep:
        """Finds the layer at which a vector changes text most before it breaks; with `unit="kl"` also which of several vectors and operations, at equal KL. Waits for the result."""

    async def calibrate(self, vector: str, *, operation: Literal["add", "apply"] | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., seed: int | None = ..., save: bool | None = ...) -> CalibrationAnswer:
        """Finds the strengths that change the predictions on neutral text by 1 nat; with `save` unit `kl` can be used. Waits for the result."""

    async def dose_response(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., strengths: Sequence[float] | None = ..., seed: int | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., random_directions: int | None = ..., judge: JudgeRequest | JsonObject | None = ..., save: bool | None = ...) -> DoseResponse:
        """Measures effect and damage by strength. Waits for the result; `save` stores it on the vector's card."""

    async def report(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., strength: float | None = ..., direction: Literal["up", "down"] | None = ..., seeds: Sequence[int] | None = ..., samples: int | None = ..., varied: int | None = ..., side_effects: Sequence[str] | None = ..., thresholds: ThresholdsFields | JsonObject | None = ...) -> Report:
        """Judges steering at a fixed operating point by three gates. Waits for the result, which takes minutes."""

    async def start_report(self, vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ..., strength: float | None = ..., direction: Literal["up", "down"] | None = ..., seeds: Sequence[int] | None = ..., samples: int | None = ..., varied: int | None = ..., side_effects: Sequence[str] | None = ..., thresholds: ThresholdsFields | JsonObject | None = ...) -> JobAnswer:
        """Starts a deployment report as a job; follow it with `job_events`."""

    async def choices(self, items: Sequence[ChoiceItem | JsonObject], *, steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ...) -> Choices:
        """Measures multiple choice on own items, {"question", "choices", "answer"}, without and with steering. Waits for the result."""

    async def start_choices(self, items: Sequence[ChoiceItem | JsonObject], *, steering: Sequence[InterventionSpec | JsonObject] | ProfileSteering | JsonObject | None = ...) -> JobAnswer:
        """Starts an evaluation of multiple choice as a job."""

    async def start_evaluation(self, kind: Literal["layer_sweep"] | Literal["dose_response"] | Literal["calibration"], vector: str, *, prompts: Sequence[str | Sequence[Message | JsonObject]] | None = ..., concept: str | None = ..., neutral: Sequence[str | Sequence[Message | JsonObject]] | None = ..., reader: str | None = ..., reading_layer: int | None = ..., scorer: str | None = ..., max_tokens: int | None = ..., temperature: float | None = ..., strengths: Sequence[float] | None = ..., seed: int | None = ..., layers: Literal["recommended", "all"] | Sequence[int] | LayerRange | JsonObject | None = ..., vectors: Sequence[str] | None = ..., operations: Sequence[str] | None = ..., unit: Literal["scale", "kl"] | None = ..., random_directions: int | None = ..., judge: JudgeRequest | JsonObject | None = ..., save: bool | None = ..., operation: Literal["add", "apply"] | None = ...) -> JobAnswer:
        """Starts an evaluation as a job; follow it with `job_events`."""

    async def put_profile(self, name: str, interventions: Sequence[InterventionSpec | JsonObject], *, description: str | None = ...) -> ProfileAnswer:
        """Stores a named list of interventions."""

    async def get_profile(self, name: str) -> ProfileAnswer:
        """Returns one profile."""

    async def delete_profile(self, name: str) -> None:
        """Deletes a profile, not the vectors it names."""

    async def list_profiles(self, *, limit: int | None = ..., cursor: str | None = ...) -> ProfileList:
        """Lists profiles by name."""

    async def set_default_steering(self, interventions: Sequence[InterventionSpec | JsonObject]) -> DefaultSteeringAnswer:
        """Sets the steering of requests that name none."""

    async def get_default_steering(self) -> DefaultSteeringAnswer:
        """Returns the default steering; `interventions` is None when none is set."""

    async def clear_default_steering(self) -> None:
        """Removes the default steering."""

    async def list_jobs(self, *, limit: int | None = ..., cursor: str | None = ...) -> JobPage:
        """Lists jobs, newest first, without their results."""

    async def get_job(self, job_id: str) -> JobAnswer:
        """Returns one job."""

    async def cancel_job(self, job_id: str) -> JobAnswer:
        """Cancels a job. A finished job is unchanged."""

    def job_events(self, job_id: str) -> AsyncGenerator[JobAnswer]:
        """Streams the progress of a job; the finished job is last."""

    async def job_output(self, job_id: str) -> list[BatchResult]:
        """Returns the results of a batch in order, also while it runs."""

    async def score_output(self, job_id: str) -> list[ScoreResult]:
        """Returns the results of a batch of scores in order, also while it runs."""

    async def save_link(self, view: Literal["compare", "space", "read"], state: JsonObject) -> LinkAnswer:
        """Saves the state of a view of the playground; whoever has the `url` of the answer and a key opens it."""

    async def get_link(self, link_id: str) -> LinkState:
        """Returns the state that a link was saved with."""

    async def delete_link(self, link_id: str) -> None:
        """Deletes a link."""

    async def list_links(self, *, limit: int | None = ..., cursor: str | None = ...) -> LinkPage:
        """Lists the links of the namespace (in `shared` of the key), newest first."""

    async def capabilities(self) -> CapabilitiesAnswer:
        """Returns the loaded model, the available operations and methods, and every limit."""

    async def health(self) -> HealthAnswer:
        """Returns when the server is ready. Raises ApiError with the reason when it is not."""

    async def version(self) -> VersionAnswer:
        """Returns the version of the server."""

    async def openapi(self) -> dict[str, Any]:
        """Returns the OpenAPI document."""

    async def list_concepts(self, search: str | None = ..., *, kind: str | None = ...) -> ConceptList:
        """Lists the starter concepts and those in words, or the ones that match a text, the best first."""

    async def get_concept(self, name: str) -> ConceptDetail:
        """Returns one concept; a starter concept with its pairs."""

    async def list_keys(self) -> KeyList:
        """Lists the keys of the database."""

    async def create_key(self, name: str, scopes: Sequence[str], *, limits: KeyLimitsFields | JsonObject | None = ..., expires_at: str | None = ..., namespace: str | None = ...) -> NewKeyAnswer:
        """Creates a key; the result is the only place where it is shown. namespace: of what it makes, by default `shared`."""

    async def change_key(self, key_id: str, *, name: str | None = ..., scopes: Sequence[str] | None = ..., limits: ChangeLimitsFields | JsonObject | None = ..., expires_at: str | None = ..., namespace: str | None = ..., force: bool | None = ..., never_expires: bool | None = ..., if_match: str | None = ...) -> KeyAnswer:
        """Changes a key. Limits that are not given stay, None removes one. never_expires: removes its expiry.
        force: also where no admin key would remain.

        if_match: the `etag` of the key as it was read; the server refuses with 412 where it has changed since.
        """

    async def rotate_key(self, key_id: str, *, old_valid_seconds: int | None = ..., if_match: str | None = ...) -> NewKeyAnswer:
        """Gives a key a new secret, which only the result shows. old_valid_seconds: how long the old one is valid beside it."""

    async def delete_key(self, key_id: str, *, force: bool | None = ..., cancel_jobs: bool | None = ...) -> None:
        """Deletes a key. force: also where no admin key would remain. cancel_jobs: its unfinished jobs are cancelled."""

    async def read_audit(self, *, limit: int | None = ..., cursor: str | None = ...) -> AuditPage:
        """Lists changes, newest first."""

    async def set_policy(self, *, mandatory: Sequence[InterventionSpec | JsonObject] | None = ..., monitors: Sequence[MonitorSpec | JsonObject] | None = ..., limits: SteeringLimits | JsonObject | None = ...) -> PolicyAnswer:
        """Sets the policy of all traffic as a whole: what is absent is removed."""

    async def get_policy(self) -> PolicyAnswer:
        """Returns the policy; without one everything in it is empty."""

    async def clear_policy(self) -> None:
        """Removes the policy."""

    async def list_monitors(self) -> MonitorList:
        """Lists the monitors of the policy with their counts."""

    async def get_monitor(self, name: str) -> MonitorDetail:
        """Returns one monitor with its latest raises."""
