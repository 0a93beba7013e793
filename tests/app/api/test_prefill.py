"""An answer that continues the assistant's last message, and the warning about control strings in a text."""

from typing import Any

import pytest

from tests.app.conftest import Server
from tests.scripted_model import ASK

CHAT = [{"role": "user", "content": "Is it warm?"}, {"role": "assistant", "content": "Yes, and"}]
OPEN = tuple(b"<user>Is it warm?\n<assistant>Yes, and")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/generate": {},
    "/v1/compare": {"arms": [{"name": "a", "steering": []}, {"name": "b", "steering": []}]},
    "/v1/chat/completions": {"model": "scripted"},
}
TEXT = "Say <|start|>user<|end|>"


@pytest.mark.parametrize("path", BODIES)
async def test_the_last_message_is_followed_by_another_one_or_continued(server: Server, path: str) -> None:
    body = {**BODIES[path], "messages": CHAT, "max_tokens": 4}
    for more, expected in (({}, (*OPEN, 10, *ASK.encode())), ({"continue_final_message": True}, OPEN)):
        server.scripted.requests.clear()
        answer = await server.client.post(path, json={**body, **more})
        assert answer.status_code == 200, answer.text
        assert {request.prompt for request in server.scripted.requests} == {expected}


async def test_what_reads_a_prompt_continues_it_too(server: Server) -> None:
    body = {"messages": CHAT, "continue_final_message": True}
    assert (await server.client.post("/tokenize", json=body)).json()["tokens"] == list(OPEN)
    lens = (await server.client.post("/v1/logit-lens", json={**body, "layers": [1], "steering": []})).json()
    assert [token["id"] for token in lens["tokens"]] == list(OPEN)
    scored = await server.client.post("/v1/score", json={**body, "continuations": [" warm"]})
    assert scored.json()["prompt_tokens"] == len(OPEN)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("messages", [CHAT[:1], [*CHAT[:1], {"role": "assistant", "content": ""}]])
async def test_only_an_answer_with_content_is_continued(
    server: Server, path: str, messages: list[dict[str, str]]
) -> None:
    answer = await server.client.post(path, json={**BODIES[path], "messages": messages, "continue_final_message": True})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "continue_final_message")
    assert server.scripted.requests == []


async def test_the_reasoning_of_a_continued_message_is_not_dropped_but_refused(server: Server) -> None:
    thought = [*CHAT[:1], {**CHAT[1], "reasoning_content": "It is summer."}]
    body = {"model": "scripted", "messages": thought, "max_tokens": 2}
    refused = await server.client.post("/v1/chat/completions", json={**body, "continue_final_message": True})
    assert refused.status_code == 400
    assert "cannot continue a message with 'reasoning_content'" in refused.json()["error"]["message"]
    assert (await server.client.post("/v1/chat/completions", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("messages", "given", "continues", "prompt"),
    [
        (CHAT, True, True, None),
        (CHAT, False, True, OPEN),
        (CHAT, False, False, (*OPEN, 10)),
        (CHAT, True, False, (*OPEN, 10, *ASK.encode())),
        (CHAT[:1], True, False, tuple(b"<user>Is it warm?\n")),
        (CHAT[:1], False, False, None),
    ],
)
async def test_a_prompt_for_the_answer_goes_with_the_last_message(
    server: Server, messages: list[dict[str, str]], given: bool, continues: bool, prompt: tuple[int, ...] | None
) -> None:
    fields = {"add_generation_prompt": given, "continue_final_message": continues}
    body = {"model": "scripted", "messages": messages, "max_tokens": 2, **fields}
    answer = await server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == (400 if prompt is None else 200), answer.text
    assert [request.prompt for request in server.scripted.requests] == ([] if prompt is None else [prompt])
    assert prompt is not None or "'add_generation_prompt'" in answer.json()["error"]["message"]


async def test_a_text_is_continued_anyway(server: Server) -> None:
    answer = await server.client.post("/v1/generate", json={"prompt": "a", "continue_final_message": True})
    assert answer.status_code == 400
    assert "'messages'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": TEXT}),
        ("/v1/completions", {"prompt": ["plain", TEXT, TEXT], "model": "scripted"}),
        ("/v1/logit-lens", {"prompt": TEXT, "steering": []}),
        ("/v1/score", {"prompt": TEXT, "continuations": ["a", "b"]}),
        ("/v1/score", {"items": [{"prompt": "plain", "choices": ["a"]}, {"prompt": TEXT, "choices": ["a"]}]}),
    ],
)
async def test_control_strings_in_a_text_are_named_once(server: Server, path: str, body: dict[str, Any]) -> None:
    answer = await server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    (warning,) = answer.json()["steering"]["warnings"]
    assert "<|end|>, <|start|>" in warning


async def test_arms_are_warned_and_conversations_are_not(server: Server) -> None:
    body = {"steering": [], "max_tokens": 2}
    for prompt, warnings in (({"prompt": TEXT}, 1), ({"messages": [{"role": "user", "content": TEXT}]}, 0)):
        answer = (await server.client.post("/v1/compare", json={**body, **prompt})).json()
        assert [len(arm["steering"]["warnings"]) for arm in answer["arms"]] == [warnings] * 2
