"""The parts of a server are found by their class, so that app/core knows no noun of the API."""

import pytest

from app.api.jobs import Jobs
from app.api.keys import ApiKeys
from app.core.settings import Settings
from app.main import create_app
from steering.errors import NotReady
from tests.app.conftest import Server, StartServer, state


async def test_a_part_is_found_by_its_class(start: StartServer) -> None:
    server: Server = await start()
    assert server.state[ApiKeys] is server.state.keys
    assert server.state[Jobs] is server.state.jobs


def test_a_part_that_needs_the_store_is_not_there_before_the_start() -> None:
    with pytest.raises(NotReady):
        state(create_app(Settings()))[Jobs]
