"""Client and AsyncClient: every route of the API as a method. `Api` is the table of routes.

The types of arguments and answers are in api.pyi, which `python -m tools.write_client` writes from the request models.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from steering.client.connection import AsyncConnection, Connection
from steering.client.results import Choices, Comparison, DoseResponse, LatentMap, LayerSweep, Readout, Report, Vector
from steering.client.routes import JsonObject, Route, to_json
from steering.schemas import comparison, evaluation, extraction, generation, governance, reading, resources, system
from steering.schemas import latent_space as space
from steering.schemas import steering as steer
from steering.schemas import vectors as stored
from steering.schemas.base import NamespacePageQuery, PageQuery
from steering.schemas.choices import ChoicesRequest
from steering.schemas.resources import JobAnswer

GENERATED = {"token": generation.TokenPiece, "done": generation.GenerateAnswer}
COMPARED = {"token": generation.TokenPiece, "error": comparison.ArmErrorAnswer, "done": Comparison}
FOLLOWED = {"progress": JobAnswer, "done": JobAnswer}
EVALUATED = (evaluation.LayerSweepRequest, evaluation.DoseResponseRequest, evaluation.CalibrationRequest)
IF_MATCH = {"if_match": "If-Match"}


def _replayed(record: steer.Record | JsonObject, *, directions: Sequence[JsonObject] = ()) -> JsonObject:
    body = record.model_dump(mode="json") if isinstance(record, steer.Record) else dict(record)
    return {"content": json.dumps({**body, "directions": list(map(dict, directions))} if directions else body).encode()}


def _lines(content: bytes | Sequence[JsonObject]) -> JsonObject:
    if isinstance(content, bytes):
        return {"content": content}
    return {"content": b"".join(json.dumps(to_json(body, "content")).encode() + b"\n" for body in content)}


def _layers(name: str, layers: str | Sequence[int] | None = None) -> JsonObject:
    return {"name": name, "layers": layers}


def _file(content: bytes, *, name: str | None = None) -> JsonObject:
    return {"content": content, "name": name}


def _deleted(key_id: str, *, force: bool = False, cancel_jobs: bool = False) -> JsonObject:
    return {"key_id": key_id, "force": force, "jobs": "cancel" if cancel_jobs else None}


def _evaluation(answer: type[BaseModel], request: type[BaseModel], order: str = "vector") -> Route:
    (kind,) = get_args(request.model_fields["kind"].annotation)
    return Route("POST /v1/evaluations", answer, request, order=(order,), fixed={"kind": kind}, part="")


class Api:
    """Every route as a method."""

    generate = Route("POST /v1/generate", generation.GenerateAnswer, generation.GenerateRequest, order=("prompt",))
    """Generates from one prompt: a text, token ids, or `messages`."""
    generate_stream = generate.streamed(GENERATED)
    """Streams a generation: a TokenPiece per token, then the complete response."""
    compare = Route("POST /v1/compare", Comparison, comparison.CompareRequest, order=("prompt",))
    """Generates from one prompt with several arms, one seed and one batch, and measures what steering changed."""
    compare_stream = compare.streamed(COMPARED)
    """Streams a comparison: TokenPieces of its arms, an ArmErrorAnswer where one ends, the response last."""
    replay = Route("POST /v1/replay", generation.GenerateAnswer, _replayed, content_type="application/json")
    """Generates the same tokens again from the `steering.record` of an earlier response.

    directions: those it was given inline, as they stood in place of a name.
    """
    start_batch = Route("POST /v1/generate/batch", JobAnswer, _lines, content_type="application/jsonl")
    """Starts answering many prompts: JSON lines, or a list of bodies of `generate` with an `id` if wanted.

    Follow the job with `job_events` and read the results with `job_output`.
    """
    start_score_batch = Route("POST /v1/score/batch", JobAnswer, _lines, content_type="application/jsonl")
    """Starts scoring many requests: JSON lines, or a list of bodies of `score`; read the results with `score_output`."""
    tokenize = Route("POST /tokenize", system.TokenizeAnswer, system.TokenizeRequest, order=("prompt",))
    """Returns the token ids of a prompt; `texts` adds the text of each token."""
    detokenize = Route("POST /detokenize", system.DetokenizeAnswer, system.DetokenizeRequest, order=("tokens",))
    """Returns the text of token ids."""

    # vectors

    register_vector = Route("POST /v1/vectors", Vector, stored.RegisterRequest, order=("name", "directions"))
    """Stores given directions, d_model numbers per layer, given maps, or both, as the next version of a name."""
    extract_vector = Route(
        "POST /v1/vectors/extract", Vector, extraction.ExtractRequest, order=("name",), part="vector"
    )
    """Extracts a vector from contrasting texts as a job, and waits for it however long it takes."""
    start_extraction = extract_vector.started()
    """Starts an extraction as a job; follow it with `job_events`."""
    distil_vector = Route(
        "POST /v1/vectors/distil", Vector, extraction.DistilRequest, order=("name", "instruction"), part="vector"
    )
    """Distils an instruction, or the `concept` of that name, into a vector with a map for the operation `apply`, and waits for it."""
    start_distil = distil_vector.started()
    """Starts distilling as a job; follow it with `job_events`."""
    transfer_vector = Route(
        "POST /v1/vectors/transfer", extraction.TransferAnswer, extraction.TransferRequest, order=("name",), part=""
    )
    """Carries a direction of the server's second model to the loaded one, and waits for it."""
    start_transfer = transfer_vector.started()
    """Starts a transfer as a job; follow it with `job_events`."""
    combine_vectors = Route("POST /v1/vectors/combine", Vector, stored.CombineRequest, order=("name", "terms"))
    """Stores a weighted sum of vectors, orthogonal to those named in `orthogonal_to`."""
    import_vector = Route("POST /v1/vectors/import", Vector, _file)
    """Stores the vector of one safetensors file, under its own name or another."""
    list_vectors = Route("GET /v1/vectors", stored.VectorPageAnswer, stored.VectorQuery)
    """Lists the newest version of each name; continue with `cursor=page.next_cursor`."""
    get_vector = Route("GET /v1/vectors/{name}", Vector)
    """Returns metadata and quality card of `name` or `name@version`."""
    similar_vectors = Route("GET /v1/vectors/{name}/similar", stored.SimilarAnswer)
    """Returns the cosine with every other vector."""
    get_directions = Route("GET /v1/vectors/{name}/directions", dict[str, list[float]], _layers)
    """Returns the unit directions by layer."""
    export_vector = Route("GET /v1/vectors/{name}/export", bytes, fixed={"format": "safetensors"})
    """Exports a vector as one safetensors file."""
    export_control_vector = Route("GET /v1/vectors/{name}/export", bytes, _layers, fixed={"format": "gguf"})
    """Exports a vector as a llama.cpp control vector (GGUF). llama.cpp adds every direction in the file at its scale."""
    export_vector_json = Route("GET /v1/vectors/{name}/export", stored.VectorExport, fixed={"format": "json"})
    """Exports a vector as JSON, with its directions."""
    describe_vector = Route("PATCH /v1/vectors/{name}", Vector, stored.DescribeRequest)
    """Changes description and tags of a vector."""
    list_versions = Route("GET /v1/vectors/{name}/versions", stored.VectorVersionsAnswer, stored.VersionsQuery)
    """Lists the versions of a vector, newest first, below `before` if given."""
    delete_vector = Route("DELETE /v1/vectors/{name}", NoneType, stored.DeleteQuery)
    """Deletes all versions, or one; `force` deletes a vector that a profile uses."""

    # readings

    readout = Route("POST /v1/readout", Readout, reading.ReadoutRequest, order=("texts",))
    """Measures each vector at every token of texts, or of one conversation (`messages`)."""
    latent_space = Route("POST /v1/latent-space", LatentMap, space.LatentSpaceRequest, order=("texts",))
    """Projects the activations of texts to two or three dimensions: one point per text and layer."""
    logit_lens = Route("POST /v1/logit-lens", reading.LogitLensAnswer, reading.LogitLensRequest, order=("prompt",))
    """Predicts the next token from every layer, at every token of a prompt, unsteered and steered."""
    activations = Route(
        "POST /v1/activations", bytes, reading.ActivationsRequest, order=("texts",), accept="application/octet-stream"
    )
    """Returns the residual stream of texts, or what another `hook` gives, as a safetensors file; read it with `safetensors.numpy.load`."""
    activations_json = replace(activations, answer=reading.ActivationsAnswer, accept="application/json")
    """Returns the residual stream of a few texts as lists of numbers."""
    score = Route("POST /v1/score", reading.ScoreAnswer, reading.ScoreRequest, order=("prompt", "continuations"))
    """Returns log-probabilities of continuations of a prompt or conversation, of whole texts, or of the choices of many items."""
    explain = Route("POST /v1/explain", reading.ExplainAnswer, reading.ExplainRequest, order=("texts",))
    """Returns the concepts of the library, or of `vectors`, that stand out in texts, or in one conversation, against neutral text."""
    clusters = Route("POST /v1/clusters", space.ClustersAnswer, space.ClustersRequest, order=("texts",))
    """Groups texts without labels by their activations at one layer."""
    list_dictionaries = Route("GET /v1/dictionaries", space.DictionariesAnswer)
    """Lists the dictionaries of the server."""
    search_dictionary = Route(
        "POST /v1/dictionaries/{name}/search", space.DictionarySearchAnswer, space.DictionarySearchRequest
    )
    """Finds features near a vector, or more active in texts than in others."""
    feature_vector = Route(
        "POST /v1/dictionaries/{dictionary}/vectors", Vector, space.FeatureVectorRequest, order=("name", "feature")
    )
    """Stores a feature of a dictionary as the next version of a vector."""

    # evaluations

    layer_sweep = _evaluation(LayerSweep, evaluation.LayerSweepRequest)
    """Finds the layer at which a vector changes text most before it breaks; with `unit="kl"` also which of several vectors and operations, at equal KL. Waits for the result."""
    calibrate = _evaluation(evaluation.CalibrationAnswer, evaluation.CalibrationRequest)
    """Finds the strengths that change the predictions on neutral text by 1 nat; with `save` unit `kl` can be used. Waits for the result."""
    dose_response = _evaluation(DoseResponse, evaluation.DoseResponseRequest)
    """Measures effect and damage by strength. Waits for the result; `save` stores it on the vector's card."""
    report = _evaluation(Report, evaluation.ReportRequest)
    """Judges steering at a fixed operating point by three gates. Waits for the result, which takes minutes."""
    start_report = report.started()
    """Starts a deployment report as a job; follow it with `job_events`."""
    choices = _evaluation(Choices, ChoicesRequest, order="items")
    """Measures multiple choice on own items, {"question", "choices", "answer"}, without and with steering. Waits for the result."""
    start_choices = choices.started()
    """Starts an evaluation of multiple choice as a job."""
    start_evaluation = Route("POST /v1/evaluations", JobAnswer, EVALUATED, order=("kind", "vector"))
    """Starts an evaluation as a job; follow it with `job_events`."""

    # what a server stores besides vectors

    put_profile = Route(
        "PUT /v1/profiles/{name}", resources.ProfileAnswer, resources.ProfileRequest, order=("interventions",)
    )
    """Stores a named list of interventions."""
    get_profile = Route("GET /v1/profiles/{name}", resources.ProfileAnswer)
    """Returns one profile."""
    delete_profile = Route("DELETE /v1/profiles/{name}", NoneType)
    """Deletes a profile, not the vectors it names."""
    list_profiles = Route("GET /v1/profiles", resources.ProfileList, NamespacePageQuery)
    """Lists profiles by name."""
    set_default_steering = Route(
        "PUT /v1/steering", steer.DefaultSteeringAnswer, steer.DefaultSteering, order=("interventions",)
    )
    """Sets the steering of requests that name none."""
    get_default_steering = Route("GET /v1/steering", steer.DefaultSteeringAnswer)
    """Returns the default steering; `interventions` is None when none is set."""
    clear_default_steering = Route("DELETE /v1/steering", NoneType)
    """Removes the default steering."""
    list_jobs = Route("GET /v1/jobs", resources.JobPage, NamespacePageQuery)
    """Lists jobs, newest first, without their results."""
    get_job = Route("GET /v1/jobs/{job_id}", JobAnswer)
    """Returns one job."""
    cancel_job = Route("DELETE /v1/jobs/{job_id}", JobAnswer)
    """Cancels a job. A finished job is unchanged."""
    job_events = get_job.streamed(FOLLOWED, "GET /v1/jobs/{job_id}/events")
    """Streams the progress of a job; the finished job is last."""
    job_output = Route("GET /v1/jobs/{job_id}/output", list[generation.BatchResult], lines=generation.BatchResult)
    """Returns the results of a batch in order, also while it runs."""
    score_output = Route("GET /v1/jobs/{job_id}/output", list[reading.ScoreResult], lines=reading.ScoreResult)
    """Returns the results of a batch of scores in order, also while it runs."""
    save_link = Route("POST /v1/links", resources.LinkAnswer, resources.LinkRequest, order=("view", "state"))
    """Saves the state of a view of the playground; whoever has the `url` of the answer and a key opens it."""
    get_link = Route("GET /v1/links/{link_id}", resources.LinkState)
    """Returns the state that a link was saved with."""
    delete_link = Route("DELETE /v1/links/{link_id}", NoneType)
    """Deletes a link."""
    list_links = Route("GET /v1/links", resources.LinkPage, NamespacePageQuery)
    """Lists the links of the namespace (in `shared` of the key), newest first."""

    # the server

    capabilities = Route("GET /v1/capabilities", system.CapabilitiesAnswer)
    """Returns the loaded model, the available operations and methods, and every limit."""
    health = Route("GET /health/ready", system.HealthAnswer)
    """Returns when the server is ready. Raises ApiError with the reason when it is not."""
    version = Route("GET /version", system.VersionAnswer)
    """Returns the version of the server."""
    openapi = Route("GET /openapi.json", dict[str, Any])
    """Returns the OpenAPI document."""
    list_concepts = Route("GET /v1/concepts", system.ConceptList, system.ConceptQuery, order=("search",))
    """Lists the starter concepts and those in words, or the ones that match a text, the best first."""
    get_concept = Route("GET /v1/concepts/{name}", system.ConceptDetail)
    """Returns one concept; a starter concept with its pairs."""

    # for admins

    list_keys = Route("GET /v1/keys", governance.KeyList)
    """Lists the keys of the database."""
    create_key = Route("POST /v1/keys", governance.NewKeyAnswer, governance.CreateKeyRequest, order=("name", "scopes"))
    """Creates a key; the result is the only place where it is shown. namespace: of what it makes, by default `shared`."""
    change_key = Route(
        "PATCH /v1/keys/{key_id}",
        governance.KeyAnswer,
        governance.ChangeKeyRequest,
        query=("force",),
        headers=IF_MATCH,
        nulls={"never_expires": "expires_at"},
    )
    """Changes a key. Limits that are not given stay, None removes one. never_expires: removes its expiry.
    force: also where no admin key would remain.

    if_match: the `etag` of the key as it was read; the server refuses with 412 where it has changed since.
    """
    rotate_key = Route(
        "POST /v1/keys/{key_id}/rotate", governance.NewKeyAnswer, governance.RotateKeyRequest, headers=IF_MATCH
    )
    """Gives a key a new secret, which only the result shows. old_valid_seconds: how long the old one is valid beside it."""
    delete_key = Route("DELETE /v1/keys/{key_id}", NoneType, _deleted)
    """Deletes a key. force: also where no admin key would remain. cancel_jobs: its unfinished jobs are cancelled."""
    read_audit = Route("GET /v1/audit", governance.AuditPage, PageQuery)
    """Lists changes, newest first."""
    set_policy = Route("PUT /v1/policy", governance.PolicyAnswer, governance.PolicySpec)
    """Sets the policy of all traffic as a whole: what is absent is removed."""
    get_policy = Route("GET /v1/policy", governance.PolicyAnswer)
    """Returns the policy; without one everything in it is empty."""
    clear_policy = Route("DELETE /v1/policy", NoneType)
    """Removes the policy."""
    list_monitors = Route("GET /v1/monitors", governance.MonitorList)
    """Lists the monitors of the policy with their counts."""
    get_monitor = Route("GET /v1/monitors/{name}", governance.MonitorDetail)
    """Returns one monitor with its latest raises."""


class Client(Connection, Api):
    """The synchronous client; `__init__` documents its options."""


class AsyncClient(AsyncConnection, Api):
    """The client for asyncio. It has the same methods and options; calls are awaited, streams are asynchronous generators."""
