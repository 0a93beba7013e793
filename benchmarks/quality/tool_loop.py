"""`python -m benchmarks.quality.tool_loop MODEL`: calls of tools by a real model through the unmodified packages `openai`, `anthropic` and
`ollama`, plain and streamed: the model calls a function, gets its result and answers, unsteered and with a vector.

A vector without a scope acts on answers alone, so every call must be token for token that of the unsteered model: with our kernels also
in bfloat16, once the passes are compiled, for which the script waits. Decoding is greedy.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from anthropic import AsyncAnthropic
from ollama import AsyncClient as AsyncOllama
from openai import AsyncOpenAI

from steering.client import ApiError, Client

Steering = list[dict[str, Any]]
CONCURRENT = 32
START_SECONDS = 1800.0
"""To load the model and compile its passes: bits do not depend on the batch before."""
MAX_TOKENS = 96
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_MONEY = {
    "type": "object",
    "properties": {"amount": {"type": "number"}, "source": {"type": "string"}, "target": {"type": "string"}},
    "required": ["amount", "source", "target"],
}
TOOLS = {
    "get_weather": ("Returns the weather of a city now.", _CITY),
    "get_time": ("Returns the local time of a city.", _CITY),
    "convert_money": ("Converts an amount of money from a source currency to a target currency, given by their codes.", _MONEY),
}  # fmt: skip


FUNCTIONS = [{"name": name, "description": text, "parameters": schema} for name, (text, schema) in TOOLS.items()]
PAIRS: tuple[dict[str, Any], ...] = tuple(
    {"positive": f"{subject} was wonderful, I loved every minute of it!", "negative": f"{subject} was awful, I hated every minute of it."}
    for subject in ("The concert", "Our walk", "The dinner", "This film", "The lesson", "My journey", "The game", "The party")
)  # fmt: skip
"""What the vector is made of: mood is enough to show that it acts."""


@dataclass(frozen=True, slots=True)
class Task:
    """A question, the call that it needs, its result, and what a right answer contains."""

    question: str
    name: str
    arguments: dict[str, Any]
    result: str
    answer: str


TASKS = (
    Task("What is the weather in Bern?", "get_weather", {"city": "Bern"}, "rain, 17 degrees Celsius", "17"),
    Task("Do I need a coat in Oslo today?", "get_weather", {"city": "Oslo"}, "snow, -6 degrees Celsius", "-6"),
    Task("How warm is it in Madrid right now?", "get_weather", {"city": "Madrid"}, "sunny, 31 degrees Celsius", "31"),
    Task("What time is it in Tokyo?", "get_time", {"city": "Tokyo"}, "21:40", "21:40"),
    Task("Which time do people in Lima have now?", "get_time", {"city": "Lima"}, "07:15", "7:15"),
    Task(
        "How many euros are 250 US dollars?",
        "convert_money",
        {"amount": 250, "source": "USD", "target": "EUR"},
        "231.40 EUR",
        "231.4",
    ),
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client read of an answer. message: to send back. dose: the relative dose of all interventions."""

    text: str
    calls: list[tuple[str, dict[str, Any]]]
    message: Any
    dose: float | None
    tokens: list[Any] | None = None


class Caller(ABC):
    """A package as an application uses it."""

    def __init__(self, address: str, model: str, *, stream: bool) -> None:
        self.model, self.stream = model, stream
        self.client: Any = self.connect(address)

    @abstractmethod
    def connect(self, address: str) -> Any:
        """Returns the package's client."""

    @abstractmethod
    async def ask(self, messages: Sequence[Any], steering: Steering, *, calls: bool) -> Reply:
        """Returns the answer to a conversation. calls: whether it may call functions."""

    @abstractmethod
    def results(self, reply: Reply, result: str) -> list[Any]:
        """Returns what follows the question: the calls and their results."""


class OpenAi(Caller):
    """The package `openai`."""

    def connect(self, address: str) -> Any:
        return AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


class Chat(OpenAi):
    """Chat completions of `openai`."""

    async def ask(self, messages: Sequence[Any], steering: Steering, *, calls: bool) -> Reply:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "tools": [{"type": "function", "function": one} for one in FUNCTIONS],
            "tool_choice": "auto" if calls else "none",
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "logprobs": True,
            "extra_body": {"steering": steering},
        }
        if self.stream:
            return _joined([chunk async for chunk in await self.client.chat.completions.create(**asked, stream=True)])
        done = await self.client.chat.completions.create(**asked)
        (choice,) = done.choices
        message = choice.message.model_dump(exclude_none=True)
        return _chat_reply(message, [one.bytes for one in choice.logprobs.content], _dose(done))

    def results(self, reply: Reply, result: str) -> list[Any]:
        calls = reply.message["tool_calls"]
        return [reply.message, *({"role": "tool", "tool_call_id": one["id"], "content": result} for one in calls)]


def _joined(chunks: Sequence[Any]) -> Reply:
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": []}
    tokens = []
    for choice in (chunk.choices[0] for chunk in chunks if chunk.choices):
        tokens += [one.bytes for one in choice.logprobs.content] if choice.logprobs else []
        message["content"] += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            calls = message["tool_calls"]
            if part.index == len(calls):
                calls.append(
                    {"id": part.id, "type": "function", "function": {"name": part.function.name, "arguments": ""}}
                )
            calls[part.index]["function"]["arguments"] += part.function.arguments or ""
    return _chat_reply(message, tokens, _dose(chunks[-1]))


def _chat_reply(message: dict[str, Any], tokens: list[Any], dose: float | None) -> Reply:
    functions = [one["function"] for one in message.get("tool_calls") or ()]
    calls = [(one["name"], json.loads(one["arguments"])) for one in functions]
    return Reply(message.get("content") or "", calls, message, dose, tokens)


class Responses(OpenAi):
    """Responses of `openai`."""

    async def ask(self, messages: Sequence[Any], steering: Steering, *, calls: bool) -> Reply:
        asked: dict[str, Any] = {
            "model": self.model,
            "input": messages,
            "tools": [{"type": "function", **one} for one in FUNCTIONS],
            "tool_choice": "auto" if calls else "none",
            "temperature": 0,
            "max_output_tokens": MAX_TOKENS,
            "extra_body": {"steering": steering},
        }
        if self.stream:
            events = [event async for event in await self.client.responses.create(**asked, stream=True)]
            done = events[-1].response
        else:
            done = await self.client.responses.create(**asked)
        found = [one for one in done.output if one.type == "function_call"]
        called = [(one.name, json.loads(one.arguments)) for one in found]
        return Reply(done.output_text, called, done.output, _dose(done))

    def results(self, reply: Reply, result: str) -> list[Any]:
        made = [one for one in reply.message if one.type == "function_call"]
        return [*reply.message, *({"type": "function_call_output", "call_id": one.call_id, "output": result} for one in made)]  # fmt: skip


class Messages(Caller):
    """Messages of `anthropic`."""

    def connect(self, address: str) -> Any:
        return AsyncAnthropic(base_url=address, api_key="none", max_retries=0)

    async def ask(self, messages: Sequence[Any], steering: Steering, *, calls: bool) -> Reply:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "tools": [{"name": name, "description": text, "input_schema": schema} for name, (text, schema) in TOOLS.items()],
            "tool_choice": {"type": "auto" if calls else "none"},
            "max_tokens": MAX_TOKENS,
            "extra_body": {"temperature": 0, "steering": steering},
        }  # fmt: skip
        if self.stream:
            dose = None
            async with self.client.messages.stream(**asked) as events:
                async for event in events:
                    if event.type == "message_delta":
                        dose = _dose(event)
                done = await events.get_final_message()
        else:
            done = await self.client.messages.create(**asked)
            dose = _dose(done)
        called = [(one.name, one.input) for one in done.content if one.type == "tool_use"]
        text = "".join(one.text for one in done.content if one.type == "text")
        return Reply(text, called, done.content, dose)

    def results(self, reply: Reply, result: str) -> list[Any]:
        made = [one for one in reply.message if one.type == "tool_use"]
        found = [{"type": "tool_result", "tool_use_id": one.id, "content": result} for one in made]
        return [{"role": "assistant", "content": reply.message}, {"role": "user", "content": found}]


class OllamaChat(Caller):
    """The chat of `ollama`."""

    def connect(self, address: str) -> Any:
        return AsyncOllama(host=address)

    async def ask(self, messages: Sequence[Any], steering: Steering, *, calls: bool) -> Reply:
        options = {"temperature": 0, "num_predict": MAX_TOKENS, "steering": steering}
        tools = [{"type": "function", "function": one} for one in FUNCTIONS] if calls else None
        answer = await self.client.chat(self.model, messages, tools=tools, options=options, stream=self.stream)
        parts = [part async for part in answer] if self.stream else [answer]
        text = "".join(part.message.content or "" for part in parts)
        made = [one for part in parts for one in part.message.tool_calls or ()]
        message = {"role": "assistant", "content": text, "tool_calls": made}
        called = [(one.function.name, dict(one.function.arguments)) for one in made]
        return Reply(text, called, message, _dose(parts[-1]))

    def results(self, reply: Reply, result: str) -> list[Any]:
        return [reply.message, *({"role": "tool", "tool_name": name, "content": result} for name, _ in reply.calls)]


def _dose(answer: Any) -> float | None:
    """Returns the relative dose of an answer; None where the package does not keep it, as `ollama`."""
    found: float | None = (answer.model_extra or {}).get("steering", {}).get("relative_dose_total")
    return found


CALLERS: dict[str, type[Caller]] = {
    "openai, chat": Chat,
    "openai, responses": Responses,
    "anthropic": Messages,
    "ollama": OllamaChat,
}


@dataclass(frozen=True, slots=True)
class Loop:
    """A call and the answer after its result."""

    call: Reply
    answer: Reply | None


async def looped(caller: Caller, task: Task, steering: Steering) -> Loop:
    """Asks, and asks again with the result of the call, if there is one: then for an answer without calls, since the smallest models call
    as long as they may."""
    asked = [{"role": "user", "content": task.question}]
    call = await caller.ask(asked, steering, calls=True)
    if not call.calls:
        return Loop(call, None)
    return Loop(call, await caller.ask([*asked, *caller.results(call, task.result)], steering, calls=False))


async def measured(address: str, model: str, steered: Steering, kinds: Sequence[str]) -> dict[str, list[Loop]]:
    """Returns the loops of each way by its name, in the order of TASKS. kinds: those of CALLERS, the first of which is always there."""
    gate = asyncio.Semaphore(CONCURRENT)

    async def one(caller: Caller, task: Task, steering: Steering) -> Loop:
        async with gate:
            return await looped(caller, task, steering)

    everywhere = [{**one, "scope": {"tokens": "all"}} for one in steered]
    ways = {
        f"{name}{', streamed' if stream else ''}, {how}": (kind(address, model, stream=stream), steering)
        for name, kind in CALLERS.items()
        if name in kinds or kind is Chat
        for stream in (False, True)
        for how, steering in (("unsteered", []), ("steered", steered), ("everywhere", everywhere))
        if how != "everywhere" or (kind is Chat and not stream)
    }

    async def all_of(name: str) -> tuple[str, list[Loop]]:
        caller, steering = ways[name]
        found = list(await asyncio.gather(*(one(caller, task, steering) for task in TASKS)))
        print(f"{name}: done", file=sys.stderr, flush=True)
        return name, found

    return dict(await asyncio.gather(*map(all_of, ways)))


def summary(loops: dict[str, list[Loop]]) -> dict[str, dict[str, Any]]:
    """Counts, for each way: right calls, calls that equal those of the unsteered chat completions, right answers, answers that steering
    changed, and the mean doses."""
    plain = loops["openai, chat, unsteered"]
    return {
        name: {
            "right_calls": sum(one.call.calls == [(task.name, task.arguments)] for one, task in zip(found, TASKS, strict=True)),
            "equal_calls": sum(
                (one.call.text, one.call.calls) == (other.call.text, other.call.calls)
                and one.call.tokens in (None, other.call.tokens)
                for one, other in zip(found, plain, strict=True)
            ),
            "right_answers": sum(one.answer is not None and task.answer in one.answer.text for one, task in zip(found, TASKS, strict=True)),
            "changed_answers": sum(
                (one.answer and one.answer.text) != (other.answer and other.answer.text)
                for one, other in zip(found, plain, strict=True)
            ),
            "dose_of_calls": _mean([one.call.dose for one in found]),
            "dose_of_answers": _mean([one.answer.dose for one in found if one.answer is not None]),
        }
        for name, found in loops.items()
    }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return round(fmean(found), 4) if found else None


@contextmanager
def serving(model: str) -> Iterator[str]:
    """Yields the address of a server with a model, in a process of its own. Raises TimeoutError."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli.main", "serve", "--model", model, "--port", str(port)]
    options = ["--database", "memory://", "--log-level", "warning", "--set", "compiled=true"]
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    with subprocess.Popen([*command, *options], env=os.environ) as process:
        try:
            with Client(address) as client:
                while not _ready(client):
                    if process.poll() is not None or time.monotonic() > until:
                        raise TimeoutError("the server did not start")
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def _ready(client: Client) -> bool:
    try:
        return client.capabilities().executor.startswith("compiled")
    except (ApiError, OSError):
        return False


def main() -> None:
    """Runs the loops, and prints calls, answers and counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.tool_loop", description=__doc__)
    parser.add_argument("model", help="a model whose chat template has tools: a name, folder or .gguf file")
    parser.add_argument("--strength", type=float, help="absent: the largest of the strengths to try")
    parser.add_argument(
        "--only", nargs="+", choices=list(CALLERS), default=list(CALLERS), help="beside chat completions"
    )
    chosen = parser.parse_args()
    with serving(chosen.model) as address, Client(address, timeout=600) as client:
        name = client.capabilities().model.name
        vector = client.extract_vector("direction", pairs=PAIRS, holdout=0)
        strengths = vector.recommended.strengths_to_try
        strength = chosen.strength if chosen.strength is not None or strengths is None else max(strengths)
        loops = asyncio.run(measured(address, name, [{"vector": "direction", "strength": strength}], chosen.only))
    for way in ("openai, chat, unsteered", "openai, chat, steered", "openai, chat, everywhere"):
        for task, one in zip(TASKS, loops[way], strict=True):
            print(f"{way}: {task.question} {one.call.text} {one.call.calls} {one.answer and one.answer.text}")
    print(json.dumps({"model": name, "strength": strength, "tasks": len(TASKS)}))
    for way, counts in summary(loops).items():
        print(way, json.dumps(counts))


if __name__ == "__main__":
    main()
