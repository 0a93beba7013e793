"""Both clients against a real server: every route answers, events come in order, failures are one ApiError."""

import inspect
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from steering.client import ApiError, AsyncClient, Client
from steering.client.api import Api
from steering.client.connection import WITHOUT_NAMESPACE
from steering.client.routes import Route
from steering.schemas.comparison import ArmErrorAnswer, CompareAnswer
from steering.schemas.generation import GenerateAnswer, TokenPiece
from steering.schemas.vectors import VectorAnswer
from steering.spec import InterventionSpec, LayerRange
from tests.app.conftest import D_MODEL, StartServer
from tests.app.document import DOCUMENT
from tests.app.running import running
from tools.write_client import PATH, stub

DIRECTIONS = {"1": [1.0] * D_MODEL, "2": [2.0] * D_MODEL}
PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}", "topic": f"t{i % 5}"} for i in range(10)]
CHAT = [{"role": "user", "content": "How was the trip?"}]
KEY = "key-of-the-test"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as found:
        for vector in found.list_vectors().data:
            found.delete_vector(vector.name, force=True)
        for profile in found.list_profiles().data:
            found.delete_profile(profile.name)
        yield found


METHODS = {name: member for name, member in vars(Api).items() if isinstance(member, Route)}


def test_every_method_is_one_of_both_clients_under_the_same_name_and_words() -> None:
    assert len(METHODS) > 70
    for name, method in METHODS.items():
        assert method.doc, name
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__ == method.doc


def test_the_types_of_the_methods_are_those_of_the_request_models() -> None:
    assert PATH.read_text(encoding="utf-8") == stub(), "run `python -m tools.write_client`"


def test_a_bound_method_shows_its_name_arguments_and_words(client: Client) -> None:
    assert client.get_profile.__name__ == "get_profile"
    assert client.get_profile.__doc__ == "Returns one profile."
    assert list(inspect.signature(client.get_profile).parameters) == ["name"]
    parameters = list(inspect.signature(client.generate_stream).parameters)
    assert parameters[0] == "prompt"
    assert {"messages", "steering", "temperature", "flag"} < set(parameters)
    assert "stream" not in parameters
    generate: Any = client.generate
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        generate("x", temprature=1.0)


def test_every_route_of_the_server_has_a_call_except_metrics_and_plain_health() -> None:
    reached = {(route.method, route.path.replace("{dictionary}", "{name}")) for route in METHODS.values()}
    paths = DOCUMENT["paths"]
    offered = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    openai = {
        ("GET", "/v1/models"), ("GET", "/v1/models/{model}"), ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"), ("POST", "/v1/embeddings"), ("POST", "/v1/responses"),
    }  # fmt: skip
    ollama = {("GET", "/api/tags"), ("GET", "/api/version")}
    ollama |= {("POST", f"/api/{name}") for name in ("chat", "generate", "show")}
    anthropic = {("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens")}
    assert offered - reached == {
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/health/live"),
        *openai,
        *anthropic,
        *ollama,
    }
    assert reached - offered == {("GET", "/openapi.json")}


def test_a_namespace_is_sent_to_exactly_the_routes_that_take_one(address: str, client: Client) -> None:
    for name, route in METHODS.items():
        operation = (
            DOCUMENT["paths"].get(route.path.replace("{dictionary}", "{name}"), {}).get(route.method.lower(), {})
        )
        takes = "namespace" in {one["name"] for one in operation.get("parameters", ())}
        assert takes != route.path.startswith(WITHOUT_NAMESPACE), name
    with Client(address, namespace="team-a") as of_a_namespace:
        assert of_a_namespace.health().status == "ok"
        assert of_a_namespace.capabilities() == client.capabilities()
        assert of_a_namespace.version() == client.version()
        assert of_a_namespace.list_concepts() == client.list_concepts()
        assert of_a_namespace.get_concept("sentiment") == client.get_concept("sentiment")
        assert of_a_namespace.openapi() == client.openapi()


def test_a_vector_is_registered_read_described_combined_carried_out_and_in_and_deleted(client: Client) -> None:
    made = client.register_vector("calm", DIRECTIONS, description="quiet", tags=["mood"])
    assert (made.id, made.layers, made.description) == ("calm@1", [1, 2], "quiet")
    assert client.get_vector("calm@1") == client.get_vector("calm") == made
    assert client.get_directions("calm", layers=[2])["2"] == pytest.approx([1 / math.sqrt(D_MODEL)] * D_MODEL)
    assert client.describe_vector("calm", tags=["mood", "kept"]).tags == ["mood", "kept"]
    assert [found.name for found in client.list_vectors(tag="kept", limit=5).data] == ["calm"]
    client.register_vector("glad", {"1": [1.0, -1.0] * (D_MODEL // 2)})
    sum_of_both = client.combine_vectors("both", [{"vector": "calm", "weight": 1.0}, {"vector": "glad", "weight": 2.0}])
    assert sum_of_both.layers == [1]
    assert {found.id for found in client.similar_vectors("calm").data} == {"glad@1", "both@1"}
    again = client.import_vector(client.export_vector("calm"), name="copy")
    assert client.export_control_vector("calm", "all").startswith(b"GGUF")
    assert len(client.export_control_vector("calm", [1])) < len(client.export_control_vector("calm", [1, 2]))
    assert client.export_vector_json("copy").directions == client.export_vector_json("calm").directions
    assert again.scale == made.scale
    client.delete_vector("copy")
    with pytest.raises(ApiError) as refused:
        client.get_vector("copy")
    assert refused.value.code == "vector_not_found"


def test_extraction_waits_or_is_followed_as_a_job_to_the_same_vector(client: Client) -> None:
    waited = client.extract_vector("mood", pairs=PAIRS, layers=[1, -1], position=-1)
    assert waited.layers == [1, 3]
    assert waited.quality is not None
    assert waited.quality.pairs == 10
    job = client.start_extraction("mood", pairs=PAIRS, layers=[1, -1], position=-1)
    records = list(client.job_events(job.id))
    assert records[-1].status == "succeeded"
    assert records[-1].result is not None
    followed = VectorAnswer.model_validate(records[-1].result["vector"])
    assert (followed.id, followed.scale) == ("mood@2", waited.scale)
    assert client.get_job(job.id) == records[-1] == client.cancel_job(job.id)
    assert job.id in {one.id for one in client.list_jobs(limit=10).data}


def test_links_keep_the_state_of_a_view_on_the_server(client: Client) -> None:
    state = {"prompt": "Grüße", "controls": [{"vector": "calm", "strength": -0.5}]}
    first, second = client.save_link("compare", state), client.save_link("read", {"text": "a"})
    assert first.url == f"/#/compare?link={first.id}"
    assert client.get_link(first.id).state == state
    page = client.list_links(limit=1)
    assert page.data == [second]
    assert client.list_links(cursor=page.next_cursor).data == [first]
    client.delete_link(first.id)
    with pytest.raises(ApiError) as error:
        client.get_link(first.id)
    assert (error.value.status, error.value.code) == (404, "link_not_found")


def test_profiles_and_the_default_steering_are_kept_on_the_server(client: Client) -> None:
    client.register_vector("calm", DIRECTIONS)
    written = InterventionSpec(vector="calm", strength=0.5, layers=LayerRange(from_=1, to=3))
    profile = client.put_profile("quiet", [written], description="hush")
    assert profile == client.get_profile("quiet") == client.list_profiles().data[0]
    assert client.generate("x", steering={"profile": "quiet"}).steering.applied[0].layers == [1, 2]
    client.set_default_steering([{"vector": "calm", "strength": 0.25}])
    kept = client.get_default_steering().interventions
    assert kept is not None
    assert kept[0].strength == 0.25
    assert client.generate("x").steering.applied[0].strength == 0.25
    client.clear_default_steering()
    assert client.get_default_steering().interventions is None
    client.delete_profile("quiet")
    assert client.list_profiles().data == []


def test_a_stream_is_pieces_in_order_and_then_the_plain_answer(client: Client) -> None:
    plain = client.generate(messages=CHAT, seed=3, max_tokens=6)
    *pieces, whole = client.generate_stream(messages=CHAT, seed=3, max_tokens=6)
    assert isinstance(whole, GenerateAnswer)
    assert whole.choices == plain.choices
    assert "".join(one.text for one in pieces if isinstance(one, TokenPiece)) == plain.choices[0].text


def test_a_comparison_reads_back_whole_and_streams_with_the_names_of_its_arms(client: Client) -> None:
    client.register_vector("calm", DIRECTIONS)
    steering = [{"vector": "calm", "strength": 2.0}]
    answer = client.compare(messages=CHAT, steering=steering, seed=3, max_tokens=4, readout=["calm"])
    assert [arm.name for arm in answer.arms] == ["base", "steered"]
    assert answer.arms[1].against_baseline is not None
    assert answer.arms[1].against_baseline.readout_shift["calm"].interval is None
    *events, whole = client.compare_stream(messages=CHAT, steering=steering, seed=3, max_tokens=4, readout=["calm"])
    assert isinstance(whole, CompareAnswer)
    assert {one.arm for one in events if isinstance(one, TokenPiece)} == {"base", "steered"}
    assert [arm.choices for arm in whole.arms] == [arm.choices for arm in answer.arms]


def test_an_arm_that_fails_is_an_event_and_the_others_go_on(client: Client) -> None:
    client.register_vector("calm", DIRECTIONS)
    *events, whole = client.compare_stream("x", steering=[{"vector": "calm", "strength": 1e7}], max_tokens=3)
    failures = [one for one in events if isinstance(one, ArmErrorAnswer)]
    assert [(one.arm, one.error.code) for one in failures] == [("steered", "nonfinite_activations")]
    assert isinstance(whole, CompareAnswer)
    assert whole.arms[0].choices


def test_tokens_concepts_and_the_server_itself(client: Client) -> None:
    tokens = client.tokenize("abc", texts=True)
    assert (tokens.texts, client.detokenize(tokens.tokens).text) == (["a", "b", "c"], "abc")
    assert client.get_concept("sentiment").pairs == next(
        c.pairs for c in client.list_concepts().data if c.name == "sentiment"
    )
    assert client.capabilities().d_model == D_MODEL
    assert client.health().status == "ok"
    assert client.version().name == "steering-server"
    document = client.openapi()
    assert isinstance(document, dict)
    assert "paths" in document


def test_client_and_command_start_without_torch_and_without_the_web_framework() -> None:
    heavy = "{'torch', 'transformers', 'fastapi', 'starlette', 'sqlalchemy'}"
    code = f"import sys, steering.client, app.cli.main; sys.exit(', '.join(sorted({heavy} & set(sys.modules))) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_key_is_sent_and_a_wrong_one_is_refused() -> None:
    with running(api_keys=(KEY,)) as address:
        with Client(address, api_key=KEY) as client:
            assert client.version().name == "steering-server"
        with Client(address) as client, pytest.raises(ApiError) as refused:
            client.version()
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


async def test_the_asynchronous_client_does_the_same_over_any_transport(start: StartServer) -> None:
    server = await start()
    async with AsyncClient("http://127.0.0.1:8000", http=server.client) as client:
        await client.register_vector("calm", DIRECTIONS)
        answer = await client.generate(messages=CHAT, steering=[{"vector": "calm"}], seed=1, max_tokens=5)
        assert answer.steering.applied[0].vector == "calm@1"
        async with aclosing(
            client.generate_stream(messages=CHAT, steering=[{"vector": "calm"}], seed=1, max_tokens=5)
        ) as s:
            *pieces, whole = [event async for event in s]
        assert isinstance(whole, GenerateAnswer)
        assert "".join(one.text for one in pieces if isinstance(one, TokenPiece)) == answer.choices[0].text
        with pytest.raises(ApiError) as refused:
            await client.get_vector("nobody")
        assert refused.value.code == "vector_not_found"
