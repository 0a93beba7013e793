"""Api: every route as a method, for both clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, overload

from pydantic import BaseModel

from steering.client.calls import analysis, generation, reading, server, vectors
from steering.client.calls.base import Call, StreamCall

if TYPE_CHECKING:
    from steering.client.client import AsyncClient, Client

P = ParamSpec("P")
C = TypeVar("C", bound=Call[Any] | StreamCall[Any])
T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)


class Method(Generic[P, C]):
    """Exposes a builder of calls as a method of both clients.

    For a Call it returns the response, or an awaitable of it; for a StreamCall a generator, whose closing cancels the request.
    """

    def __init__(self, build: Callable[P, C]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self: Method[P, Call[T]], client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self: Method[P, Call[T]], client: AsyncClient, owner: type) -> Callable[P, Awaitable[T]]: ...
    @overload
    def __get__(self: Method[P, StreamCall[E]], client: Client, owner: type) -> Callable[P, Generator[E]]: ...
    @overload
    def __get__(self: Method[P, StreamCall[E]], client: AsyncClient, owner: type) -> Callable[P, AsyncGenerator[E]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            built = self._build(*args, **kwargs)
            return client.events(built) if isinstance(built, StreamCall) else client.send(built)

        return method


class Api:
    """Every route as a method."""

    generate = Method(generation.generate)
    generate_stream = Method(generation.generate_stream)
    compare = Method(generation.compare)
    compare_stream = Method(generation.compare_stream)
    replay = Method(generation.replay)
    start_batch = Method(generation.start_batch)
    job_output = Method(server.job_output)
    tokenize = Method(generation.tokenize)
    detokenize = Method(generation.detokenize)
    register_vector = Method(vectors.register_vector)
    extract_vector = Method(vectors.extract_vector)
    start_extraction = Method(vectors.start_extraction)
    transfer_vector = Method(vectors.transfer_vector)
    start_transfer = Method(vectors.start_transfer)
    combine_vectors = Method(vectors.combine_vectors)
    import_vector = Method(vectors.import_vector)
    list_vectors = Method(vectors.list_vectors)
    get_vector = Method(vectors.get_vector)
    get_directions = Method(vectors.get_directions)
    export_vector = Method(vectors.export_vector)
    export_control_vector = Method(vectors.export_control_vector)
    export_vector_json = Method(vectors.export_vector_json)
    similar_vectors = Method(vectors.similar_vectors)
    describe_vector = Method(vectors.describe_vector)
    list_versions = Method(vectors.list_versions)
    delete_vector = Method(vectors.delete_vector)
    readout = Method(analysis.readout)
    latent_space = Method(analysis.latent_space)
    logit_lens = Method(analysis.logit_lens)
    activations = Method(reading.activations)
    activations_json = Method(reading.activations_json)
    score = Method(reading.score)
    explain = Method(reading.explain)
    list_dictionaries = Method(reading.list_dictionaries)
    search_dictionary = Method(reading.search_dictionary)
    feature_vector = Method(reading.feature_vector)
    clusters = Method(reading.clusters)
    layer_sweep = Method(analysis.layer_sweep)
    dose_response = Method(analysis.dose_response)
    report = Method(analysis.report)
    start_report = Method(analysis.start_report)
    start_evaluation = Method(analysis.start_evaluation)
    put_profile = Method(server.put_profile)
    list_profiles = Method(server.list_profiles)
    get_profile = Method(server.get_profile)
    delete_profile = Method(server.delete_profile)
    set_default_steering = Method(server.set_default_steering)
    get_default_steering = Method(server.get_default_steering)
    clear_default_steering = Method(server.clear_default_steering)
    create_key = Method(server.create_key)
    list_keys = Method(server.list_keys)
    change_key = Method(server.change_key)
    rotate_key = Method(server.rotate_key)
    delete_key = Method(server.delete_key)
    read_audit = Method(server.read_audit)
    set_policy = Method(server.set_policy)
    get_policy = Method(server.get_policy)
    clear_policy = Method(server.clear_policy)
    list_monitors = Method(server.list_monitors)
    get_monitor = Method(server.get_monitor)
    list_jobs = Method(server.list_jobs)
    get_job = Method(server.get_job)
    cancel_job = Method(server.cancel_job)
    job_events = Method(server.job_events)
    save_link = Method(server.save_link)
    list_links = Method(server.list_links)
    get_link = Method(server.get_link)
    delete_link = Method(server.delete_link)
    list_concepts = Method(server.list_concepts)
    get_concept = Method(server.get_concept)
    capabilities = Method(server.capabilities)
    health = Method(server.health)
    version = Method(server.version)
    openapi = Method(server.openapi)
