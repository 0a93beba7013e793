"""The unmodified ollama package drives the server over a real socket: its answers are chat completions in another form."""

import json
from dataclasses import replace
from typing import Any

import httpx2
import ollama
import pytest
from ollama import AsyncClient

from tests.app.conftest import Server, StartServer
from tests.app.core.listening import Listening
from tests.app.openai import test_structured_output
from tests.app.openai.test_openai_client import collected
from tests.app.openai.test_structured_output import FORMAT, SCHEMA
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL

ASK: list[Any] = [{"role": "user", "content": "Hello"}]
KEY = "sk-right-key-0123456789"
OWN = [{"vector": "mood", "strength": 0.25}]

engine, tiny = test_structured_output.engine, test_structured_output.tiny


async def chat_of(plain: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    """Returns the chat completion of the same server: the reference."""
    answer = await plain.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_answer_is_the_chat_completion_of_the_same_conversation(
    client: AsyncClient, plain: httpx2.AsyncClient, model: str
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *ASK]
    sampling: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "presence_penalty": 0.5}
    for name in (f"{model}@cheerful", f"{model}@cheerful:latest"):
        chat = await chat_of(
            plain, model=f"{model}@cheerful", messages=messages, max_tokens=5, steering=OWN, **sampling
        )
        options = {**sampling, "num_predict": 5, "steering": OWN}
        answer = await client.chat(name, messages, options=options)
        assert answer.message.role == "assistant"
        assert answer.message.content == chat["choices"][0]["message"]["content"]
        assert (answer.model, answer.done, answer.done_reason) == (name, True, chat["choices"][0]["finish_reason"])
        counts = (answer.prompt_eval_count, answer.eval_count)
        assert counts == (chat["usage"]["prompt_tokens"], chat["usage"]["completion_tokens"])
        generated = await client.generate(name, "Hello", system="Be brief.", options=options)
        assert generated.response == answer.message.content
        raw = (
            await plain.post(
                "/api/chat", json={"model": name, "messages": messages, "stream": False, "options": options}
            )
        ).json()
        assert (raw["seed"], raw["steering"]["record"]) == (7, chat["steering"]["record"])
        assert [one["strength"] for one in raw["steering"]["applied"]] == [0.5, 0.25]


async def test_a_stream_is_the_answer_in_lines(client: AsyncClient, plain: httpx2.AsyncClient, model: str) -> None:
    options = {"num_predict": 6, "seed": 5}
    whole = await client.chat(model, ASK, options=options)
    parts = await collected(await client.chat(model, ASK, stream=True, options=options))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == (whole.done_reason, whole.eval_count)
    generated = await collected(await client.generate(model, "Hello", stream=True, options=options))
    assert "".join(part.response for part in generated) == whole.message.content
    streamed = await plain.post("/api/chat", json={"model": model, "messages": ASK, "options": options})
    assert streamed.headers["content-type"].startswith("application/x-ndjson"), "a stream is the default"
    last = json.loads(streamed.text.splitlines()[-1])
    assert (last["seed"], last["steering"]["applied"]) == (5, [])


async def test_a_slow_stream_has_answers_alone_in_its_lines(start: StartServer) -> None:
    server = await start(ScriptedEngine(token_seconds=0.15, length=2), keepalive_seconds=0.05)
    body = {"model": "scripted", "messages": ASK}
    lines = (await server.client.post("/api/chat", json=body)).text.split("\n")
    assert [json.loads(line)["done"] for line in lines[:-1]] == [False, False, True]
    assert lines[-1] == ""
    chat = await server.client.post("/v1/chat/completions", json={**body, "stream": True})
    assert ": keep-alive" in chat.text, "as streams of events have them at this pace"


async def test_durations_are_nanoseconds_of_the_parts_of_an_answer(client: AsyncClient, model: str) -> None:
    answer = await client.chat(model, ASK, options={"num_predict": 3})
    found = (answer.prompt_eval_duration, answer.eval_duration, answer.total_duration)
    prompt, tokens, total = (one or 0 for one in found)
    assert 0 < prompt + tokens <= total < 60_000_000_000
    assert answer.load_duration == 0
    assert (answer.created_at or "").endswith("Z")


async def test_a_raw_prompt_is_continued_without_the_template(
    client: AsyncClient, plain: httpx2.AsyncClient, model: str
) -> None:
    answer = await client.generate(model, "Once upon", raw=True, options={"num_predict": 4, "temperature": 0.0})
    body = {"model": model, "prompt": "Once upon", "max_tokens": 4, "temperature": 0}
    expected = (await plain.post("/v1/completions", json=body)).json()
    assert answer.response == expected["choices"][0]["text"]
    assert answer.prompt_eval_count == expected["usage"]["prompt_tokens"]


async def test_a_last_message_of_the_assistant_is_continued(
    client: AsyncClient, plain: httpx2.AsyncClient, model: str
) -> None:
    messages = [*ASK, {"role": "assistant", "content": "It is"}]
    answer = await client.chat(model, messages, options={"num_predict": 4, "temperature": 0.0})
    chat = await chat_of(
        plain, model=model, messages=messages, max_tokens=4, temperature=0, continue_final_message=True
    )
    assert answer.message.content == chat["choices"][0]["message"]["content"]


async def test_models_are_the_model_and_its_profiles(client: AsyncClient, listening: Listening, model: str) -> None:
    info = listening.engine.info
    listed = (await client.list()).models
    assert [one.model for one in listed] == [model, f"{model}@cheerful"]
    shown = await client.show(f"{model}@cheerful")
    assert shown.capabilities == ["completion"]
    family = info.architecture.lower()
    assert (shown.modelinfo or {})[f"{family}.context_length"] == info.context_length
    assert shown.details is not None
    assert (shown.details.parent_model, shown.details.family) == (model, family)
    with pytest.raises(ollama.ResponseError) as missing:
        await client.show("llama3")
    assert (missing.value.status_code, f"'{model}'" in missing.value.error) == (404, True)


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools", "cannot be given tools"),
    ({"think": True}, "unsupported_parameter", "think", "does not think"),
    ({"logprobs": True}, "unsupported_parameter", "logprobs", "logprobs is not supported"),
    ({"messages": [{**ASK[0], "images": ["aGVsbG8="]}]}, "unsupported_parameter", "images", "images is not supported"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_request", "messages.0.tool_name", "without a result"),
    ({"messages": [{"role": "developer", "content": "x"}]}, "invalid_request", "messages.0.role", "'assistant'"),
    ({"messages": [*ASK, {"role": "assistant", "content": ""}]}, "invalid_request", "messages", "empty"),
    ({"messages": []}, "invalid_request", "messages", "at least 1"),
    ({"options": {"num_ctx": 2048}}, "unsupported_parameter", "options.num_ctx", "num_ctx is not supported"),
    ({"options": {"mirostat": 2}}, "unsupported_parameter", "options.mirostat", "mirostat is not supported"),
    ({"options": {"repeat_last_n": 0}}, "unsupported_parameter", "options.repeat_last_n", "repeat_last_n is not"),
    ({"options": {"penalize_newline": False}}, "unsupported_parameter", "options.penalize_newline", "is not supported"),
    ({"messages": [{"role": "user", "content": "x" * 9000}]}, "context_length_exceeded", "messages", "holds"),
    ({"options": {"temprature": 1}}, "invalid_request", "options.temprature", "did you mean 'temperature'"),
    ({"options": {"temperature": 3}}, "invalid_request", "options.temperature", "at most 2"),
    ({"options": {"num_predict": 0}}, "invalid_request", "options.num_predict", "at least 1"),
    ({"options": {"num_predict": 100_000}}, "context_length_exceeded", "options.num_predict", "holds"),
    ({"options": {"stop": ["a"] * 5}}, "limit_exceeded", "options.stop", "at most 4"),
    ({"options": {"steering": [{"vector": "mood", "color": 1}]}}, "invalid_request", "options.steering.0.color", "not known"),
    ({"options": {"steering": []}, "steering": []}, "invalid_request", "", "not both"),
    ({"keep": 1}, "invalid_request", "keep", "keep_alive"),
]  # fmt: skip


async def test_what_would_change_an_answer_is_refused_with_a_text(server: Server) -> None:
    for changes, code, param, words in REFUSED:
        for stream in (False, True):
            body = {"model": "scripted", "messages": ASK, "stream": stream, **changes}
            answer = await server.client.post("/api/chat", json=body)
            error = answer.json()
            assert set(error) == {"error", "type", "param", "code"}
            assert (answer.status_code, error["code"], error["param"] or "") == (400, code, param)
            assert words in error["error"]


@pytest.mark.parametrize(
    "changes", [{"suffix": "x"}, {"template": "x"}, {"context": [1]}, {"images": ["aGVsbG8="]}, {"width": 64}]
)
async def test_fields_of_generate_that_are_not_offered_are_refused(server: Server, changes: dict[str, Any]) -> None:
    answer = await server.client.post("/api/generate", json={"model": "scripted", "prompt": "a", **changes})
    assert (answer.status_code, answer.json()["code"]) == (400, "unsupported_parameter")


async def test_options_reach_the_engine(server: Server) -> None:
    options = {
        "temperature": 0.25, "top_p": 0.5, "top_k": 9, "min_p": 0.1, "repeat_penalty": 1.5, "presence_penalty": 0.5,
        "frequency_penalty": 0.75, "seed": 3, "stop": ["x", "y"], "num_predict": 11, "num_thread": 2, "num_gpu": 1,
    }  # fmt: skip
    for path, asked in (("/api/chat", {"messages": ASK}), ("/api/generate", {"prompt": "Hello", "suffix": "", "template": ""})):  # fmt: skip
        body = {"model": "scripted", "options": options, "keep_alive": "5m", "stream": False, **asked}
        assert (await server.client.post(path, json=body)).status_code == 200
        sampling = server.scripted.requests[-1].sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.25, 0.5, 9, 0.1)
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        assert penalties == (1.5, 0.5, 0.75)
        assert (sampling.seed, sampling.stop, sampling.max_tokens) == (3, ("x", "y"), 11)


@pytest.mark.parametrize("options", [{}, {"num_predict": -1}, {"num_predict": -2}])
async def test_without_a_limit_an_answer_ends_by_itself(start: StartServer, options: dict[str, int]) -> None:
    server = await start(ScriptedEngine(length=300))
    body = {"model": "scripted", "messages": ASK, "options": options, "stream": False}
    answer = (await server.client.post("/api/chat", json=body)).json()
    assert (answer["done_reason"], answer["eval_count"]) == ("stop", 300)


async def test_an_answer_that_a_monitor_stops_says_so(server: Server) -> None:
    await server.register("mood")
    monitor = {"name": "watch", "vector": "mood", "above": 0.0, "action": "stop"}
    assert (await server.client.put("/v1/policy", json={"monitors": [monitor]})).status_code == 200
    lines = (await server.client.post("/api/chat", json={"model": "scripted", "messages": ASK})).text.splitlines()
    last = json.loads(lines[-1])
    assert (last["done_reason"], last["flags"][0]["monitor"]) == ("monitor", "watch")


async def test_failures_reach_the_client_as_texts() -> None:
    scripted = ScriptedEngine()
    async with Listening(scripted) as listening, AsyncClient(host=listening.url) as client:
        scripted.failure, scripted.fail_at = ValueError("secret"), 2
        with pytest.raises(ollama.ResponseError) as broken:
            await client.chat("scripted", ASK)
        assert broken.value.status_code == 500
        assert broken.value.error.startswith("an internal error occurred")
        stream = await client.generate("scripted", "Hello", stream=True)
        first = await anext(aiter(stream))
        assert first.response
        with pytest.raises(ollama.ResponseError) as cut:
            await collected(stream)
        assert cut.value.error == broken.value.error


async def test_the_key_is_asked_for_and_refused_with_a_text() -> None:
    async with Listening(ScriptedEngine(), api_keys=f"{KEY},sk-reader-key-0123456789:read") as listening:
        async with AsyncClient(host=listening.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            assert (await client.chat("scripted", ASK, options={"num_predict": 2})).eval_count == 2
        for key, status in (("sk-wrong-key-0123456789", 401), ("sk-reader-key-0123456789", 403)):
            async with AsyncClient(host=listening.url, headers={"Authorization": f"Bearer {key}"}) as client:
                with pytest.raises(ollama.ResponseError) as refused:
                    await client.list()
            assert refused.value.status_code == status
            assert "key" in refused.value.error


async def test_the_tag_of_the_clients_is_left_out_unless_it_is_part_of_the_name(start: StartServer) -> None:
    named = await start(ScriptedEngine(info=replace(SCRIPTED_MODEL, name="llama3:latest")))
    for server, name, status in (
        (named, "llama3:latest", 200),
        (named, "llama3", 404),
        (await start(), "scripted:latest", 200),
        (await start(), ":latest", 404),
    ):
        answer = await server.client.post("/api/chat", json={"model": name, "messages": ASK, "stream": False})
        assert answer.status_code == status, answer.text
        assert (await server.client.post("/api/show", json={"model": name})).status_code == status


async def test_null_is_as_good_as_absent(server: Server) -> None:
    body = {"model": "scripted", "prompt": "a", "stream": None, "raw": None, "options": None}
    answer = await server.client.post("/api/generate", json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson"), "a stream is the default"


async def test_every_refusal_has_a_text(server: Server) -> None:
    """Also of a path without a route, such as those with which models are pulled, and of a host that is refused."""
    json_type = {"content-type": "application/json"}
    requests: list[tuple[str, str, dict[str, Any], int]] = [
        ("GET", "/api/chat", {}, 405),
        ("POST", "/api/pull", {"json": {"model": "a"}}, 404),
        ("POST", "/api/chat", {"content": b"{"}, 415),
        ("POST", "/api/chat", {"content": b"{", "headers": json_type}, 400),
        ("POST", "/api/chat", {"content": b" " * (server.state.settings.max_body_bytes + 1)}, 413),
        ("GET", "/api/tags", {"headers": {"host": "elsewhere"}}, 403),
    ]
    for method, path, options, status in requests:
        answer = await server.client.request(method, path, **options)
        assert (answer.status_code, set(answer.json())) == (status, {"error", "type", "param", "code"}), path
        assert isinstance(answer.json()["error"], str)


async def test_more_messages_than_the_operator_allows_are_refused(start: StartServer) -> None:
    server = await start(max_messages=3)
    answer = await server.client.post("/api/chat", json={"model": "scripted", "messages": ASK * 4})
    assert (answer.status_code, answer.json()["code"]) == (400, "limit_exceeded")


async def test_the_version_is_that_of_this_server(server: Server) -> None:
    ours = (await server.client.get("/version")).json()["version"]
    assert (await server.client.get("/api/version")).json() == {"version": ours}


async def test_an_answer_is_held_to_a_format(tiny: Server) -> None:
    body = {"model": "tiny", "messages": ASK, "stream": False, "options": {"num_predict": 200, "seed": 5}}
    chat = {"model": "tiny", "messages": ASK, "max_tokens": 200, "seed": 5, "response_format": FORMAT}
    expected = (await tiny.client.post("/v1/chat/completions", json=chat)).json()["choices"][0]["message"]["content"]
    answer = (await tiny.client.post("/api/chat", json={**body, "format": SCHEMA})).json()
    assert answer["message"]["content"] == expected
    assert json.loads(expected).keys() == {"mood", "score"}
    body["options"] = {"num_predict": 8, "seed": 5}
    for free in ("", None):
        answer = (await tiny.client.post("/api/chat", json={**body, "format": free})).json()
        assert not expected.startswith(answer["message"]["content"])
    answer = (await tiny.client.post("/api/chat", json={**body, "format": "json"})).json()
    assert answer["message"]["content"].lstrip().startswith("{")


async def test_a_format_that_is_none_or_too_deep_is_refused(server: Server) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"items": deep}
    for given, words in ((deep, "deeper than 32"), ("yaml", "'json'"), (3, "'json'")):
        body = {"model": "scripted", "messages": ASK, "format": given}
        error = (await server.client.post("/api/chat", json=body)).json()
        assert (error["code"], (error["param"] or "").partition(".")[0]) == ("invalid_request", "format")
        assert words in error["error"]
