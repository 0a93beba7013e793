"""Client and AsyncClient: every route of the API as a method, with the types of its arguments. `Api` is the table of routes."""

import json
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

from steering.client.connection import AsyncConnection, Connection
from steering.client.options import (
    ActivationOptions,
    CalibrationOptions,
    ClusterOptions,
    DistilOptions,
    DoseOptions,
    ExplainOptions,
    ExtractOptions,
    Intervention,
    LayerList,
    Layers,
    LayerSweepOptions,
    MapOptions,
    Messages,
    Prompt,
    ReportOptions,
    StartedEvaluationOptions,
    Steered,
    Steering,
    Text,
    Texts,
    TransferOptions,
    VectorDescription,
    VectorFilters,
)
from steering.client.results import Choices, Comparison, DoseResponse, LatentMap, LayerSweep, Readout, Report, Vector
from steering.client.routes import JsonObject, Route, to_json
from steering.schemas import comparison, extraction, generation, governance, reading, resources, system, vectors
from steering.schemas.choices import ChoiceItem
from steering.schemas.comparison import ArmFields
from steering.schemas.evaluation import CalibrationAnswer
from steering.schemas.generation import FlagCondition
from steering.schemas.latent_space import ClustersAnswer, DictionariesAnswer, DictionarySearchAnswer
from steering.schemas.messages import ResponseFormat
from steering.schemas.steering import DefaultSteeringAnswer, Record
from steering.spec import Hook


class SamplingOptions(TypedDict, total=False):
    """Options of `generate` and `compare`. continue_final_message: the answer continues the last message, the assistant's."""

    continue_final_message: bool
    steering: Steering
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    n: int
    logprobs: bool | int
    readout: Sequence[str]
    response_format: ResponseFormat | JsonObject
    guided_regex: str
    guided_grammar: str


class GenerateOptions(SamplingOptions, total=False):
    """Sampling options, and flags: conditions on readouts, {"vector", "above" or "below"}."""

    flag: Sequence[FlagCondition | JsonObject]


class CompareOptions(SamplingOptions, total=False):
    """Sampling options, and the arms in one of three forms: `arms`, `steering`, or `strengths` of an `intervention`."""

    arms: Sequence[ArmFields | JsonObject]
    strengths: Sequence[float]
    intervention: Intervention
    baseline: str


# Events of streams
Piece: TypeAlias = generation.TokenPiece
GENERATED: Mapping[str, type[Piece | generation.GenerateAnswer]] = {"token": Piece, "done": generation.GenerateAnswer}
COMPARED: Mapping[str, type[Piece | comparison.ArmErrorAnswer | Comparison]] = {
    "token": Piece, "error": comparison.ArmErrorAnswer, "done": Comparison
}  # fmt: skip
FOLLOWED = {"progress": resources.JobAnswer, "done": resources.JobAnswer}


def _joined(layers: str | Sequence[int] | None) -> str | None:
    """Returns layers as a query has them."""
    return layers if layers is None or isinstance(layers, str) else ",".join(map(str, layers))


def _job_results(content: bytes) -> list[generation.BatchResult]:
    return [generation.BatchResult.model_validate_json(line) for line in content.splitlines() if line]


def _score_results(content: bytes) -> list[reading.ScoreResult]:
    return [reading.ScoreResult.model_validate_json(line) for line in content.splitlines() if line]


class Api:
    """Every route as a method."""

    @Route("POST /v1/generate", generation.GenerateAnswer)
    def generate(self, prompt: Prompt = None, *, messages: Messages = None, **options: Unpack[GenerateOptions]) -> None:
        """Generates from one prompt: a text, token ids, or `messages`."""

    generate_stream = generate.streamed(
        "Streams a generation: a TokenPiece per token, then the complete response.", GENERATED
    )

    @Route("POST /v1/compare", Comparison)
    def compare(self, prompt: Prompt = None, *, messages: Messages = None, **options: Unpack[CompareOptions]) -> None:
        """Generates from one prompt with several arms, one seed and one batch, and measures what steering changed."""

    compare_stream = compare.streamed(
        "Streams a comparison: TokenPieces of its arms, an ArmErrorAnswer where one ends, the response last.", COMPARED
    )

    @Route("POST /v1/replay", generation.GenerateAnswer, content_type="application/json")
    def replay(self, record: Record | JsonObject, *, directions: Sequence[JsonObject] = ()) -> JsonObject:
        """Generates the same tokens again from the `steering.record` of an earlier response.

        directions: those it was given inline, as they stood in place of a name.
        """
        body = record.model_dump(mode="json") if isinstance(record, Record) else dict(record)
        if directions:
            body["directions"] = [dict(item) for item in directions]
        return {"content": json.dumps(body).encode()}

    @Route("POST /v1/generate/batch", resources.JobAnswer, content_type="application/jsonl")
    def start_batch(self, content: bytes | Sequence[JsonObject]) -> JsonObject:
        """Starts answering many prompts: JSON lines, or a list of bodies of `generate` with an `id` if wanted.

        Follow the job with `job_events` and read the results with `job_output`.
        """
        if not isinstance(content, bytes):
            content = b"".join(json.dumps(to_json(body)).encode() + b"\n" for body in content)
        return {"content": content}

    start_score_batch = start_batch.variant(
        "POST /v1/score/batch",
        resources.JobAnswer,
        "Starts scoring many requests: JSON lines, or a list of bodies of `score`; read the results with `score_output`.",
        content_type="application/jsonl",
    )

    @Route("POST /tokenize", system.TokenizeAnswer)
    def tokenize(
        self,
        prompt: Prompt = None,
        *,
        messages: Messages = None,
        continue_final_message: bool | None = None,
        texts: bool = False,
    ) -> None:
        """Returns the token ids of a prompt; `texts` adds the text of each token."""

    @Route("POST /detokenize", system.DetokenizeAnswer)
    def detokenize(self, tokens: Sequence[int]) -> None:
        """Returns the text of token ids."""

    @Route("POST /v1/vectors", Vector)
    def register_vector(
        self,
        name: str,
        directions: Mapping[str, Sequence[float]] | None = None,
        *,
        scale: Mapping[str, float] | None = None,
        maps: Mapping[str, vectors.MapNumbers | JsonObject] | None = None,
        **options: Unpack[VectorDescription],
    ) -> None:
        """Stores given directions, d_model numbers per layer, given maps, or both, as the next version of a name."""

    @Route("POST /v1/vectors/extract", Vector, part="vector")
    def extract_vector(self, name: str, **options: Unpack[ExtractOptions]) -> None:
        """Extracts a vector from contrasting texts as a job, and waits for it however long it takes."""

    start_extraction = extract_vector.variant(
        "POST /v1/vectors/extract", resources.JobAnswer, "Starts an extraction as a job; follow it with `job_events`."
    )

    @Route("POST /v1/vectors/distil", Vector, part="vector")
    def distil_vector(self, name: str, instruction: str | None = None, **options: Unpack[DistilOptions]) -> None:
        """Distils an instruction, or the `concept` of that name, into a vector with a map for the operation `apply`, and waits for it."""

    start_distil = distil_vector.variant(
        "POST /v1/vectors/distil", resources.JobAnswer, "Starts distilling as a job; follow it with `job_events`."
    )

    @Route("POST /v1/vectors/transfer", extraction.TransferAnswer, part="")
    def transfer_vector(self, name: str, **options: Unpack[TransferOptions]) -> None:
        """Carries a direction of the server's second model to the loaded one, and waits for it."""

    start_transfer = transfer_vector.variant(
        "POST /v1/vectors/transfer", resources.JobAnswer, "Starts a transfer as a job; follow it with `job_events`."
    )

    @Route("POST /v1/vectors/combine", Vector)
    def combine_vectors(
        self,
        name: str,
        terms: Sequence[vectors.Term | JsonObject],
        *,
        orthogonal_to: Sequence[str] = (),
        **options: Unpack[VectorDescription],
    ) -> None:
        """Stores a weighted sum of vectors, orthogonal to those named in `orthogonal_to`."""

    @Route("POST /v1/vectors/import", Vector)
    def import_vector(self, content: bytes, *, name: str | None = None) -> None:
        """Stores the vector of one safetensors file, under its own name or another."""

    @Route("GET /v1/vectors", vectors.VectorPageAnswer)
    def list_vectors(self, **options: Unpack[VectorFilters]) -> None:
        """Lists the newest version of each name; continue with `cursor=page.next_cursor`."""

    @Route("GET /v1/vectors/{name}", Vector)
    def get_vector(self, name: str) -> None:
        """Returns metadata and quality card of `name` or `name@version`."""

    similar_vectors = get_vector.variant(
        "GET /v1/vectors/{name}/similar", vectors.SimilarAnswer, "Returns the cosine with every other vector."
    )

    @Route("GET /v1/vectors/{name}/directions", dict[str, list[float]])
    def get_directions(self, name: str, layers: Sequence[int] | None = None) -> JsonObject:
        """Returns the unit directions by layer."""
        return {"name": name, "layers": _joined(layers)}

    @Route("GET /v1/vectors/{name}/export", bytes)
    def export_vector(self, name: str) -> JsonObject:
        """Exports a vector as one safetensors file."""
        return {"name": name, "format": "safetensors"}

    @Route("GET /v1/vectors/{name}/export", bytes)
    def export_control_vector(
        self, name: str, layers: Literal["recommended", "all"] | Sequence[int] = "recommended"
    ) -> JsonObject:
        """Exports a vector as a llama.cpp control vector (GGUF). llama.cpp adds every direction in the file at its scale."""
        return {"name": name, "format": "gguf", "layers": _joined(layers)}

    @Route("GET /v1/vectors/{name}/export", vectors.VectorExport)
    def export_vector_json(self, name: str) -> JsonObject:
        """Exports a vector as JSON, with its directions."""
        return {"name": name, "format": "json"}

    @Route("PATCH /v1/vectors/{name}", Vector)
    def describe_vector(self, name: str, **options: Unpack[VectorDescription]) -> None:
        """Changes description and tags of a vector."""

    @Route("GET /v1/vectors/{name}/versions", vectors.VectorVersionsAnswer)
    def list_versions(self, name: str, *, limit: int = 50, before: int | None = None) -> None:
        """Lists the versions of a vector, newest first, below `before` if given."""

    @Route("DELETE /v1/vectors/{name}", NoneType)
    def delete_vector(self, name: str, *, version: int | None = None, force: bool = False) -> None:
        """Deletes all versions, or one; `force` deletes a vector that a profile uses."""

    @Route("POST /v1/readout", Readout)
    def readout(
        self,
        texts: Texts = None,
        *,
        vectors: Sequence[str],
        messages: Messages = None,
        layers: Layers | None = None,
        phase: Sequence[str] | None = None,
        hook: Hook | None = None,
    ) -> None:
        """Measures each vector at every token of texts, or of one conversation (`messages`)."""

    @Route("POST /v1/latent-space", LatentMap)
    def latent_space(self, texts: Sequence[Text], **options: Unpack[MapOptions]) -> None:
        """Projects the activations of texts to two or three dimensions: one point per text and layer."""

    @Route("POST /v1/logit-lens", reading.LogitLensAnswer)
    def logit_lens(
        self,
        prompt: Prompt = None,
        *,
        messages: Messages = None,
        continue_final_message: bool | None = None,
        steering: Steered = None,
        layers: LayerList | None = None,
        top_k: int = 5,
    ) -> None:
        """Predicts the next token from every layer, at every token of a prompt, unsteered and steered."""

    @Route("POST /v1/activations", bytes, accept="application/octet-stream")
    def activations(
        self, texts: Texts = None, *, dtype: str | None = None, **options: Unpack[ActivationOptions]
    ) -> None:
        """Returns the residual stream of texts, or what another `hook` gives, as a safetensors file; read it with
        `safetensors.numpy.load`."""

    @Route("POST /v1/activations", reading.ActivationsAnswer, accept="application/json")
    def activations_json(self, texts: Texts = None, **options: Unpack[ActivationOptions]) -> None:
        """Returns the residual stream of a few texts as lists of numbers."""

    @Route("POST /v1/score", reading.ScoreAnswer)
    def score(
        self,
        prompt: Prompt = None,
        continuations: Sequence[str] | None = None,
        *,
        messages: Messages = None,
        continue_final_message: bool | None = None,
        texts: Sequence[str] | None = None,
        items: Sequence[reading.ScoreItem | JsonObject] | None = None,
        steering: Steered = None,
    ) -> None:
        """Returns log-probabilities of continuations of a prompt or conversation, of whole texts, or of the choices of many items."""

    @Route("POST /v1/explain", reading.ExplainAnswer)
    def explain(self, texts: Texts = None, **options: Unpack[ExplainOptions]) -> None:
        """Returns the concepts of the library, or of `vectors`, that stand out in texts, or in one conversation, against neutral text."""

    @Route("POST /v1/clusters", ClustersAnswer)
    def clusters(self, texts: Sequence[Text], **options: Unpack[ClusterOptions]) -> None:
        """Groups texts without labels by their activations at one layer."""

    @Route("POST /v1/dictionaries/{name}/search", DictionarySearchAnswer)
    def search_dictionary(
        self,
        name: str,
        *,
        vector: str | None = None,
        texts: Texts = None,
        against: Texts = None,
        top: int = 20,
        min_output_score: float | None = None,
    ) -> None:
        """Finds features near a vector, or more active in texts than in others."""

    @Route("POST /v1/dictionaries/{dictionary}/vectors", Vector)
    def feature_vector(self, dictionary: str, name: str, feature: int, **options: Unpack[VectorDescription]) -> None:
        """Stores a feature of a dictionary as the next version of a vector."""

    @Route("POST /v1/evaluations", LayerSweep, part="")
    def layer_sweep(self, vector: str, **options: Unpack[LayerSweepOptions]) -> JsonObject:
        """Finds the layer at which a vector changes text most before it breaks; with `unit="kl"` also which of several vectors and
        operations, at equal KL. Waits for the result."""
        return {"kind": "layer_sweep", "vector": vector, **options}

    @Route("POST /v1/evaluations", CalibrationAnswer, part="")
    def calibrate(self, vector: str, **options: Unpack[CalibrationOptions]) -> JsonObject:
        """Finds the strengths that change the predictions on neutral text by 1 nat; with `save` unit `kl` can be used. Waits for the
        result."""
        return {"kind": "calibration", "vector": vector, **options}

    @Route("POST /v1/evaluations", DoseResponse, part="")
    def dose_response(self, vector: str, **options: Unpack[DoseOptions]) -> JsonObject:
        """Measures effect and damage by strength. Waits for the result; `save` stores it on the vector's card."""
        return {"kind": "dose_response", "vector": vector, **options}

    @Route("POST /v1/evaluations", Report, part="")
    def report(self, vector: str, **options: Unpack[ReportOptions]) -> JsonObject:
        """Judges steering at a fixed operating point by three gates. Waits for the result, which takes minutes."""
        return {"kind": "report", "vector": vector, **options}

    start_report = report.variant(
        "POST /v1/evaluations", resources.JobAnswer, "Starts a deployment report as a job; follow it with `job_events`."
    )

    @Route("POST /v1/evaluations", Choices, part="")
    def choices(self, items: Sequence[ChoiceItem | JsonObject], *, steering: Steered = None) -> JsonObject:
        """Measures multiple choice on own items, {"question", "choices", "answer"}, without and with steering. Waits for the result."""
        return {"kind": "choices", "items": items, "steering": steering}

    start_choices = choices.variant(
        "POST /v1/evaluations", resources.JobAnswer, "Starts an evaluation of multiple choice as a job."
    )

    @Route("POST /v1/evaluations", resources.JobAnswer)
    def start_evaluation(
        self,
        kind: Literal["layer_sweep", "dose_response", "calibration"],
        vector: str,
        **options: Unpack[StartedEvaluationOptions],
    ) -> None:
        """Starts an evaluation as a job; follow it with `job_events`."""

    @Route("PUT /v1/profiles/{name}", resources.ProfileAnswer)
    def put_profile(self, name: str, interventions: Sequence[Intervention], *, description: str = "") -> None:
        """Stores a named list of interventions."""

    get_profile = get_vector.variant("GET /v1/profiles/{name}", resources.ProfileAnswer, "Returns one profile.")
    delete_profile = get_vector.variant(
        "DELETE /v1/profiles/{name}", NoneType, "Deletes a profile, not the vectors it names."
    )

    @Route("GET /v1/profiles", resources.ProfileList)
    def list_profiles(self, *, limit: int = 50, cursor: str | None = None) -> None:
        """Lists profiles by name."""

    @Route("PUT /v1/steering", DefaultSteeringAnswer)
    def set_default_steering(self, interventions: Sequence[Intervention]) -> None:
        """Sets the steering of requests that name none."""

    @Route("GET /v1/steering", DefaultSteeringAnswer)
    def get_default_steering(self) -> None:
        """Returns the default steering; `interventions` is None when none is set."""

    clear_default_steering = get_default_steering.variant(
        "DELETE /v1/steering", NoneType, "Removes the default steering."
    )
    list_jobs = list_profiles.variant(
        "GET /v1/jobs", resources.JobPage, "Lists jobs, newest first, without their results."
    )

    @Route("GET /v1/jobs/{job_id}", resources.JobAnswer)
    def get_job(self, job_id: str) -> None:
        """Returns one job."""

    cancel_job = get_job.variant(
        "DELETE /v1/jobs/{job_id}", resources.JobAnswer, "Cancels a job. A finished job is unchanged."
    )
    job_events = get_job.streamed(
        "Streams the progress of a job; the finished job is last.", FOLLOWED, "GET /v1/jobs/{job_id}/events"
    )
    job_output = get_job.variant(
        "GET /v1/jobs/{job_id}/output",
        list[generation.BatchResult],
        "Returns the results of a batch in order, also while it runs.",
        read=_job_results,
    )
    score_output = get_job.variant(
        "GET /v1/jobs/{job_id}/output",
        list[reading.ScoreResult],
        "Returns the results of a batch of scores in order, also while it runs.",
        read=_score_results,
    )

    @Route("POST /v1/links", resources.LinkAnswer)
    def save_link(self, view: resources.View, state: JsonObject) -> None:
        """Saves the state of a view of the playground; whoever has the `url` of the answer and a key opens it."""

    @Route("GET /v1/links/{link_id}", resources.LinkState)
    def get_link(self, link_id: str) -> None:
        """Returns the state that a link was saved with."""

    delete_link = get_link.variant("DELETE /v1/links/{link_id}", NoneType, "Deletes a link.")
    list_links = list_profiles.variant(
        "GET /v1/links", resources.LinkPage, "Lists the links of the namespace (in `shared` of the key), newest first."
    )
    get_concept = get_vector.variant(
        "GET /v1/concepts/{name}", system.ConceptDetail, "Returns one concept; a starter concept with its pairs."
    )

    @Route("GET /v1/capabilities", system.CapabilitiesAnswer)
    def capabilities(self) -> None:
        """Returns the loaded model, the available operations and methods, and every limit."""

    @Route("GET /health/ready", system.HealthAnswer)
    def health(self) -> None:
        """Returns when the server is ready. Raises ApiError with the reason when it is not."""

    version = health.variant("GET /version", system.VersionAnswer, "Returns the version of the server.")
    openapi = health.variant("GET /openapi.json", dict[str, Any], "Returns the OpenAPI document.")

    @Route("GET /v1/concepts", system.ConceptList)
    def list_concepts(self, search: str | None = None, *, kind: str | None = None) -> None:
        """Lists the starter concepts and those in words, or the ones that match a text, the best first."""

    list_dictionaries = health.variant(
        "GET /v1/dictionaries", DictionariesAnswer, "Lists the dictionaries of the server."
    )
    list_keys = health.variant("GET /v1/keys", governance.KeyList, "Lists the keys of the database.")

    @Route("POST /v1/keys", governance.NewKeyAnswer)
    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        limits: JsonObject | None = None,
        expires_at: str | None = None,
        namespace: str | None = None,
    ) -> None:
        """Creates a key; the result is the only place where it is shown. namespace: of what it makes, by default `shared`."""

    @Route("PATCH /v1/keys/{key_id}", governance.KeyAnswer, query=["force"], headers={"if_match": "If-Match"})
    def change_key(
        self,
        key_id: str,
        *,
        name: str | None = None,
        scopes: Sequence[str] | None = None,
        limits: JsonObject | None = None,
        namespace: str | None = None,
        expires_at: str | None = None,
        if_match: str | None = None,
        force: bool = False,
    ) -> None:
        """Changes a key. Limits that are not given stay, None removes one. force: also where no admin key would remain.

        if_match: the `etag` of the key as it was read; the server refuses with 412 where it has changed since.
        """

    @Route("POST /v1/keys/{key_id}/rotate", governance.NewKeyAnswer, headers={"if_match": "If-Match"})
    def rotate_key(self, key_id: str, *, old_valid_seconds: int = 0, if_match: str | None = None) -> None:
        """Gives a key a new secret, which only the result shows. old_valid_seconds: how long the old one is valid beside it."""

    @Route("DELETE /v1/keys/{key_id}", NoneType)
    def delete_key(self, key_id: str, *, force: bool = False, cancel_jobs: bool = False) -> JsonObject:
        """Deletes a key. force: also where no admin key would remain. cancel_jobs: its unfinished jobs are cancelled."""
        return {"key_id": key_id, "force": force, "jobs": "cancel" if cancel_jobs else None}

    read_audit = list_profiles.variant("GET /v1/audit", governance.AuditPage, "Lists changes, newest first.")

    @Route("PUT /v1/policy", governance.PolicyAnswer)
    def set_policy(
        self,
        *,
        mandatory: Sequence[Intervention] | None = None,
        monitors: Sequence[JsonObject] | None = None,
        limits: JsonObject | None = None,
    ) -> None:
        """Sets the policy of all traffic as a whole: what is absent is removed."""

    @Route("GET /v1/policy", governance.PolicyAnswer)
    def get_policy(self) -> None:
        """Returns the policy; without one everything in it is empty."""

    clear_policy = get_policy.variant("DELETE /v1/policy", NoneType, "Removes the policy.")
    list_monitors = get_policy.variant(
        "GET /v1/monitors", governance.MonitorList, "Lists the monitors of the policy with their counts."
    )
    get_monitor = get_vector.variant(
        "GET /v1/monitors/{name}", governance.MonitorDetail, "Returns one monitor with its latest raises."
    )


class Client(Connection, Api):
    """The synchronous client; `__init__` documents its options."""


class AsyncClient(AsyncConnection, Api):
    """The client for asyncio. It has the same methods and options; calls are awaited, streams are asynchronous generators."""
