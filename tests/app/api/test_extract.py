"""POST /v1/vectors/extract: the planted direction comes out, whatever form the texts have, as a job or while one waits."""

import asyncio
from typing import Any

import pytest

from steering.concepts import CONCEPTS
from steering.concepts.described import described
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from steering.workflows.texts import conversation
from tests.app.conftest import Server, StartServer, events_of
from tests.app.openai.test_phases import Thinker
from tests.byte_tokenizer import build_byte_tokenizer
from tests.fakes import ScriptedEngine
from tests.families import LLAMA_LIKE, build
from tests.narrowing import messages_of
from tests.polling import until
from tests.scripted_model import planted_direction

PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(12)]
BODY: dict[str, Any] = {"name": "mood", "pairs": PAIRS}


async def made(server: Server, **body: Any) -> dict[str, Any]:
    """Extracts while waiting and returns the vector."""
    answer = await server.client.post("/v1/vectors/extract?wait=true", json={**BODY, **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_planted_direction_is_found_and_proved(server: Server) -> None:
    vector = await made(server, description="good against bad", tags=["mood"])
    assert (vector["id"], vector["layers"], vector["method"]) == ("mood@1", [0, 1, 2, 3], "mean_difference")
    assert vector["quality"]["pairs"] == 12
    assert vector["quality"]["layers"]["2"]["auroc"] == 1.0
    assert vector["provenance"]["position"] == "last"
    low, high = vector["means"]["2"][::-1]
    assert low < high
    numbers = (await server.client.get("/v1/vectors/mood/directions")).json()
    cosine = sum(a * b for a, b in zip(numbers["2"], planted_direction().tolist(), strict=True))
    assert cosine > 0.99


@pytest.mark.parametrize("method", ["mean_difference", "pca", "probe", "whitened"])
async def test_every_method_of_the_table(server: Server, method: str) -> None:
    vector = await made(server, method=method, layers=[1, -1])
    assert (vector["method"], vector["layers"]) == (method, [1, 3])


async def test_the_trained_method_is_one_more(server: Server) -> None:
    vector = await made(server, method="trained", training={"steps": 7, "strengths": [0.5, 0.75]})
    assert vector["method"] == "trained"
    assert len(vector["layers"]) == 1
    training = vector["provenance"]["training"]
    assert (training["steps"], training["strengths"]) == (7, [0.5, 0.75])
    layer = str(vector["layers"][0])
    numbers = (await server.client.get("/v1/vectors/mood/directions")).json()[layer]
    assert numbers == pytest.approx(planted_direction().tolist())
    bold = await made(server, method="trained", layers=[1, 2], training={"steps": 2, "kl_coefficient": 0})
    assert bold["layers"] == [1, 2]
    assert bold["provenance"]["training"]["kl_coefficient"] == 0.0


@pytest.mark.parametrize(("steps", "status"), [(20, 202), (2000, 400)])
async def test_training_is_bounded_before_it_begins(start: StartServer, steps: int, status: int) -> None:
    server = await start(max_scored_tokens=1_000)
    body = {**BODY, "method": "trained", "layers": [1], "training": {"steps": steps}}
    answer = await server.client.post("/v1/vectors/extract", json=body)
    assert answer.status_code == status, answer.text
    if status == 400:
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("limit_exceeded", "training")


async def test_training_is_a_job_with_progress_that_can_be_cancelled(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.002))
    body = {**BODY, "method": "trained", "training": {"steps": 2000}}
    job = (await server.client.post("/v1/vectors/extract", json=body)).json()
    record = await server.state.store.shared.jobs.get(job["id"])
    assert record.request["training"] == {"steps": 2000}

    async def training() -> bool:
        record = (await server.client.get(f"/v1/jobs/{job['id']}")).json()
        return str((record["progress"] or {}).get("message")).startswith("training layer")

    while not await training():
        pass
    assert (await server.client.delete(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"
    assert server.engine.stats().running == 0
    assert (await server.client.get("/v1/vectors")).json()["data"] == []


async def test_texts_may_be_conversations_unpaired_or_a_concept(server: Server) -> None:
    def chat(word: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": word}]

    pairs = [{"positive": chat(f"good {i}"), "negative": chat(f"bad {i}"), "topic": f"t{i}"} for i in range(4)]
    assert (await made(server, pairs=pairs))["provenance"]["topics"] == 4
    unpaired = {
        "name": "unpaired",
        "positive": [f"good {i}" for i in range(6)],
        "negative": [f"bad {i}" for i in range(9)],
    }
    answer = await server.client.post("/v1/vectors/extract?wait=true", json=unpaired)
    assert answer.status_code == 201, answer.text
    assert answer.json()["provenance"]["paired"] is False


async def test_a_model_without_a_chat_template_reads_conversations_as_transcripts(start: StartServer) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = None
    model = build("LlamaForCausalLM", **LLAMA_LIKE)
    server = await start(TransformersEngine(opened(model, tokenizer, name="base")))
    vector = await made(server, pairs=None, concept="toxicity", layers=[1], holdout=0)
    assert vector["provenance"]["text_form"] == "transcript"
    assert any("plain transcript" in one for one in vector["quality"]["warnings"])


async def test_where_texts_are_read_follows_from_their_form_unless_it_is_given(server: Server) -> None:
    def pair(word: str, i: int, talks: bool) -> Any:
        text = f"{word} day {i}"
        return [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": text}] if talks else text

    for talks, expected in (((False, False), "last"), ((True, True), "response_mean"), ((True, False), "mean")):
        pairs = [
            {"positive": pair("good", i, talks[i % 2]), "negative": pair("bad", i, talks[i % 2])} for i in range(12)
        ]
        assert (await made(server, pairs=pairs))["provenance"]["position"] == expected
        assert (await made(server, pairs=pairs, position=-1))["provenance"]["position"] == -1


async def test_starter_concepts_are_listed_and_shown(server: Server) -> None:
    listed = (await server.client.get("/v1/concepts", params={"kind": "starter"})).json()["data"]
    assert [one["name"] for one in listed] == list(CONCEPTS)
    shown = (await server.client.get("/v1/concepts/sentiment")).json()
    assert shown["pairs"] == len(shown["data"]) >= 60
    assert shown["positive"] == CONCEPTS["sentiment"].positive
    body = {"name": "s", "concept": "sentiment", "layers": [1]}
    answer = await server.client.post("/v1/vectors/extract", json=body)
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"method": "magic"}, "invalid_request"),
        ({"training": {"steps": 5}}, "invalid_request"),
        ({"method": "trained", "training": {"steps": 0}}, "invalid_request"),
        ({"method": "trained", "training": {"epochs": 5}}, "invalid_request"),
        ({"method": "trained", "training": {"kl_coefficient": -1}}, "invalid_request"),
        ({"method": "trained", "training": {"strengths": [1.0, 0.5]}}, "invalid_request"),
        ({"method": "trained", "pairs": None, "positive": ["a"], "negative": ["b"]}, "invalid_request"),
        ({"layers": [4]}, "invalid_request"),
        ({"layers": []}, "invalid_request"),
        ({"layers": "some"}, "invalid_request"),
        ({"position": 0}, "invalid_request"),
        ({"position": "all"}, "invalid_request"),
        ({"holdout": 1}, "invalid_request"),
        ({"holdout": -0.1}, "invalid_request"),
        ({"name": "No Good"}, "invalid_request"),
        ({"concept": "sentiment"}, "invalid_request"),
        ({"pairs": []}, "invalid_request"),
        ({"pairs": [{"positive": "a"}]}, "invalid_request"),
        ({"pairs": [{"positive": "", "negative": "b"}]}, "invalid_request"),
        ({"pairs": [{"positive": "a", "negative": [{"role": "robot", "content": "b"}]}]}, "invalid_request"),
        ({"pairs": None, "positive": ["a"]}, "invalid_request"),
        ({"pairs": None, "concept": "nothing"}, "concept_not_found"),
        ({"url": "http://169.254.169.254/"}, "invalid_request"),
    ],
)
async def test_what_cannot_be_extracted_is_rejected_at_once_and_not_by_a_job(
    server: Server, wrong: dict[str, Any], code: str
) -> None:
    body = {key: value for key, value in {**BODY, **wrong}.items() if value is not None}
    answer = await server.client.post("/v1/vectors/extract", json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["code"] == code
    assert (await server.client.get("/v1/jobs")).json()["data"] == []


async def test_a_description_is_refused_before_it_is_written_where_its_answers_are_too_many_to_read(
    start: StartServer,
) -> None:
    server = await start(max_activations=144 * 4 * 8 - 1)
    body = {"name": "calm", "describe": {"trait": "calm", "opposite": "angry"}}
    answer = await server.client.post("/v1/vectors/extract", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded")
    assert server.scripted.requests == []


async def test_a_job_is_watched_to_its_end(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.002))
    job = (await server.client.post("/v1/vectors/extract", json=BODY)).json()
    assert (job["kind"], job["status"]) == ("extract", "queued")
    events = events_of((await server.client.get(f"/v1/jobs/{job['id']}/events")).text)
    name, last = events[-1]
    assert (name, last["status"]) == ("done", "succeeded")
    assert last["result"]["vector"]["id"] == "mood@1"
    done = [data["progress"]["done"] for kind, data in events if kind == "progress"]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert (await server.client.get(f"/v1/jobs/{job['id']}")).json() == last
    assert (await server.client.get("/v1/vectors/mood")).json() == last["result"]["vector"]
    assert [one["id"] for one in (await server.client.get("/v1/jobs")).json()["data"]] == [job["id"]]
    late = events_of((await server.client.get(f"/v1/jobs/{job['id']}/events")).text)
    assert late == [("done", last)]


async def test_a_cancelled_job_stops_and_keeps_nothing(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()))
    job = (await server.client.post("/v1/vectors/extract", json=BODY)).json()
    await until(lambda: server.engine.stats().running == 1)
    cancelled = (await server.client.delete(f"/v1/jobs/{job['id']}")).json()
    assert cancelled["status"] == "cancelled"
    assert server.engine.stats().running == 0
    assert (await server.client.get("/v1/vectors")).json()["data"] == []
    again = (await server.client.delete(f"/v1/jobs/{job['id']}")).json()
    assert again["status"] == "cancelled"


async def test_a_job_that_fails_says_why_and_hides_what_is_ours(start: StartServer) -> None:
    for failure, code in ((RuntimeError("/secret"), "internal_error"),):
        server = await start(ScriptedEngine(failure=failure, fail_at=3))
        job = (await server.client.post("/v1/vectors/extract", json=BODY)).json()
        events = events_of((await server.client.get(f"/v1/jobs/{job['id']}/events")).text)
        assert events[-1][1]["status"] == "failed"
        assert events[-1][1]["error"]["code"] == code
        assert "secret" not in str(events)


async def test_too_many_jobs_are_refused_at_once(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()), max_jobs=1, max_queued_jobs=1)
    ids = [(await server.client.post("/v1/vectors/extract", json=BODY)).json()["id"] for _ in range(2)]
    refused = await server.client.post("/v1/vectors/extract", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert server.state.rows.reserved == 0
    for job in reversed(ids):
        await server.client.delete(f"/v1/jobs/{job}")
    assert (await server.client.post("/v1/vectors/extract", json=BODY)).status_code == 202


async def test_a_stop_of_the_server_is_read_as_interrupted(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()))
    job = (await server.client.post("/v1/vectors/extract", json=BODY)).json()
    await until(lambda: server.engine.stats().running == 1)
    await server.state.jobs.close()
    record = await server.state.store.shared.jobs.get(job["id"])
    assert (record.status, record.error and record.error.code) == ("failed", "interrupted")


async def test_a_card_may_have_the_largest_score_of_a_text(server: Server) -> None:
    card = (await made(server, card_position="max"))["quality"]
    assert (card["max_auroc"], card["auroc"]) == (1.0, 1.0)
    assert card["max_auroc_interval"][0] > 0.5
    answer = await server.client.post("/v1/vectors/extract", json={**BODY, "method": "trained", "card_position": "max"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "card_position")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/vectors/extract", BODY),
        ("/v1/latent-space", {"texts": ["a", "b"]}),
        ("/v1/clusters", {"texts": ["a", "b"]}),
        ("/v1/activations", {"texts": ["a"]}),
        ("/v1/embeddings", {"model": "scripted", "input": "a"}),
    ],
)
async def test_a_maximum_of_scores_is_no_activation(server: Server, path: str, body: dict[str, Any]) -> None:
    answer = await server.client.post(path, json={**body, "position": "max"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "position")
    assert "largest score over the tokens" in error["message"]
    assert server.scripted.captured == []


async def test_concepts_in_words_are_listed_beside_them_found_by_text_and_written_by_the_model(server: Server) -> None:
    async def names(**query: str) -> list[str]:
        return [one["name"] for one in (await server.client.get("/v1/concepts", params=query)).json()["data"]]

    everything = await names()
    assert everything[: len(CONCEPTS)] == list(CONCEPTS)
    assert everything[len(CONCEPTS) :] == list(described())
    assert (await names(search="like a pirate"))[0] == "pirate"
    assert (await names(search="warnings about risks", kind="conduct")) == ["safety-warnings"]
    shown = (await server.client.get("/v1/concepts/pirate")).json()
    assert (shown["kind"], shown["pairs"], shown["data"]) == ("role", 0, [])
    for name in ("hedging", "assistant"):
        vector = await made(server, name=name, pairs=None, concept=name, layers=[1])
        entry = described()[name]
        assert (vector["description"], vector["provenance"]["concept"]) == (entry.description, name)
        assert vector["provenance"]["position"] == "response_mean"
    prompts = [one.prompt for one in server.scripted.requests[-288:]]
    assert sum(len(messages_of(one)) == 1 for one in prompts) == 144, "answers without an instruction"
    for body, status in (({"concept": "hedging", "name": "x"}, 404), ({"concept": "nobody", "name": "x"}, 404)):
        answer = await server.client.post(
            "/v1/evaluations", json={"kind": "dose_response", "vector": "hedging", **body}
        )
        assert answer.status_code in (status, 400), answer.text


async def test_the_assistant_axis_is_held_by_a_policy_of_one_line(server: Server) -> None:
    await made(server, name="assistant", pairs=None, concept="assistant", layers=[1])
    policy = {"mandatory": [{"vector": "assistant", "operation": "clamp", "low": 0.0}]}
    assert (await server.client.put("/v1/policy", json=policy)).status_code == 200
    answer = await server.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 1, "steering": []})
    (held,) = answer.json()["steering"]["mandatory"]
    assert (held["vector"], held["operation"], held["low"], held["layers"]) == ("assistant@1", "clamp", 0.0, [1])


LONG = "word " * 120
"""A text much longer than those of PAIRS."""


def talk(text: str) -> list[dict[str, str]]:
    """A conversation that ends with a text."""
    return [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": text}]


@pytest.mark.parametrize(("how", "layers"), [({"card_position": "max"}, 1), ({"phase": ["answer"]}, 4)])
async def test_all_tokens_of_the_longest_text_must_fit_where_they_are_read_at_once(
    how: dict[str, Any], layers: int, start: StartServer
) -> None:
    """Of four layers one lies where `card_position` reads. The activations of 12 texts at one position fit either way."""
    pairs = [{"positive": talk(f"good {i}"), "negative": talk(f"bad {i}")} for i in range(5)]
    body = {**BODY, "pairs": [*pairs, {"positive": talk(LONG), "negative": talk("bad")}], **how}
    longest = len(Thinker().tokenizer.encode(conversation("How was it?", LONG)))
    most = longest * layers * 8
    refused, allowed = [await start(Thinker(), max_activations=bound) for bound in (most - 1, most)]
    answer = await refused.client.post("/v1/vectors/extract", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded")
    told = f"{most} activations of the longest text (tokens x layers x d_model) given; at most {most - 1}"
    assert answer.json()["error"]["message"] == told
    assert refused.scripted.captured == []
    assert (await allowed.client.post("/v1/vectors/extract", json=body)).status_code == 202


async def test_a_text_that_is_too_long_to_train_on_is_refused_before_the_job(server: Server) -> None:
    body = {**BODY, "method": "trained", "pairs": [*PAIRS, {"positive": LONG, "negative": "bad"}]}
    answer = await server.client.post("/v1/vectors/extract", json={**body, "holdout": 0})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded")
    assert "tokens; at most 512 can be fitted on" in answer.json()["error"]["message"]
    assert server.scripted.captured == []


async def test_an_engine_that_reads_no_attention_refuses_the_attending_token_before_the_job(server: Server) -> None:
    body = {**BODY, "position": {"span": "good", "read": "attending"}}
    assert (await server.client.get("/v1/capabilities")).json()["attending_positions"]
    server.scripted.reads_attention = False
    answer = await server.client.post("/v1/vectors/extract", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert (answer.json()["error"]["param"], server.scripted.captured) == ("position", [])
    assert not (await server.client.get("/v1/capabilities")).json()["attending_positions"]
