"""Judges of evaluations: the loaded model, or the one OpenAI-compatible endpoint that the operator configured."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import httpx2

from app.settings import Settings
from steering.engine.api import Engine
from steering.errors import UnsupportedParameter
from steering.workflows.evaluation.judge import REPLY, EngineJudge, Judge, Unanswered

MAX_REPLY_BYTES = 1 << 20
"""Bytes of a reply that are read."""


class EndpointJudge:
    """Asks `POST {base_url}/chat/completions`. Redirects are not followed: they could lead to an address that the operator did not configure."""

    at_once = 8

    def __init__(self, http: httpx2.AsyncClient, url: str, model: str, api_key: str | None, seconds: float) -> None:
        self._http, self._url, self._model = http, f"{url.rstrip('/')}/chat/completions", model
        self._seconds = seconds
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    async def ask(self, question: str) -> str:
        """See Judge.ask. Tries once; failures are counted in the result."""
        messages = [{"role": "user", "content": question}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": REPLY}
        try:
            # the client's timeouts are per read, so a reply of single bytes would never end
            async with (
                asyncio.timeout(self._seconds),
                self._http.stream("POST", self._url, json=body, headers=self._headers) as response,
            ):
                if response.status_code != 200:
                    raise Unanswered(f"the judge answered {response.status_code}")
                content = bytearray()
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MAX_REPLY_BYTES:
                        raise Unanswered("the judge's reply is too long")
            reply = json.loads(content)["choices"][0]["message"]["content"]
        except (httpx2.HTTPError, TimeoutError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise Unanswered(f"the judge could not be asked: {type(error).__name__}") from error
        if not isinstance(reply, str):
            raise Unanswered("the judge's reply contains no text")
        return reply


def judges(settings: Settings) -> list[str]:
    """Lists the judges that an evaluation may name."""
    return ["self"] if settings.judge_base_url is None else ["self", "endpoint"]


def check_judge(settings: Settings, by: Literal["self", "endpoint"]) -> None:
    """Raises UnsupportedParameter for `endpoint` where none is configured."""
    if by not in judges(settings):
        raise UnsupportedParameter(
            "judge 'endpoint' is not configured on this server (STEERING_JUDGE_BASE_URL); 'self' uses the loaded model",
            param="judge",
        )


@asynccontextmanager
async def opened_judge(settings: Settings, engine: Engine, by: Literal["self", "endpoint"]) -> AsyncIterator[Judge]:
    """Opens the judge for one evaluation, one that `check_judge` allows."""
    if by == "self" or settings.judge_base_url is None or settings.judge_model is None:
        yield EngineJudge(engine)
        return
    timeout = httpx2.Timeout(settings.judge_seconds, connect=min(settings.judge_seconds, 10.0))
    async with httpx2.AsyncClient(timeout=timeout, follow_redirects=False) as http:
        yield EndpointJudge(
            http, settings.judge_base_url, settings.judge_model, settings.judge_api_key, settings.judge_seconds
        )
