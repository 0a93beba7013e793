"""How many modules one steered stream enters when everything is warm: what a newcomer reads to follow it."""

import sys
import threading
from contextvars import ContextVar
from types import FrameType

from transformers import PreTrainedTokenizerFast

from tests.app.conftest import StartServer
from tests.app.policy.conftest import directions, tiny_engine

MOST = 50
IN_REQUEST = ContextVar("in_request", default=False)
"""Set in the tasks of a request, and not in those that read what other servers changed."""


class Entered:
    """Notes the project's modules whose functions are called in threads that begin after it was made, and in this thread by
    tasks of a request."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.noting = False
        threading.setprofile(self.note)

    def note(self, frame: FrameType, event: str, _argument: object) -> None:
        """Called by the interpreter."""
        module = frame.f_globals.get("__name__", "")
        asked = IN_REQUEST.get() or threading.current_thread() is not threading.main_thread()
        if self.noting and asked and event == "call" and module.startswith(("app.", "steering.")):
            self.modules.add(module)


async def test_a_steered_stream_enters_few_modules(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    entered = Entered()
    try:
        engine = tiny_engine(hf_byte_tokenizer)
        client = (await start(engine)).client
        body = {"name": "mood", "directions": directions(engine.info.d_model, 1)}
        assert (await client.post("/v1/vectors", json=body)).status_code == 201
        stream = {"prompt": "Once upon a time", "max_tokens": 8, "stream": True, "steering": [{"vector": "mood"}]}
        for turn in range(3):
            if turn == 2:
                IN_REQUEST.set(True)
                entered.noting = True
                sys.setprofile(entered.note)
            answer = await client.post("/v1/generate", json=stream)
            assert '"finish_reason"' in answer.text
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert {"app.api.generate", "steering.injection.apply", "steering.engine.transformers.loop"} <= entered.modules
    assert len(entered.modules) <= MOST, "\n".join(sorted(entered.modules))
