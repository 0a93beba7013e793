"""A refresh that has read the database before a change does not undo that change."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from tests.app.conftest import Server
from tests.app.policy.conftest import put_policy
from tests.app.policy.test_keys import ask, bearer, created

PUSH = {"vector": "mood", "strength": 3.0, "layers": [1]}


class Delegate:
    """An object with some attributes replaced."""

    def __init__(self, to: Any, **replaced: Any) -> None:
        self._to = to
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)


class Late:
    """A read of the database whose caller gets what was read only when `opened` is set."""

    def __init__(self, read: Any) -> None:
        self._read = read
        self.has_read, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> Any:
        """Reads, and waits."""
        found = await self._read()
        self.has_read.set()
        await self.opened.wait()
        return found


async def changed_after_the_read(
    refresh: Coroutine[Any, Any, None], late: Late, change: Coroutine[Any, Any, Any]
) -> Any:
    """Makes a change between the read of a refresh and its end, as far as the server lets it. Returns its result."""
    refreshing = asyncio.create_task(refresh)
    await late.has_read.wait()
    changing = asyncio.create_task(change)
    await asyncio.wait([changing], timeout=0.3)
    late.opened.set()
    await refreshing
    return await changing


async def test_a_policy_stays_as_it_was_put(tiny: Server) -> None:
    state, late = tiny.state, Late(lambda: tiny.state.store.documents.get("policy"))
    await put_policy(tiny, limits={"own_steering": "none"})
    state.policy._content = None  # this server has not read it yet, as when another server has set it
    late_store: Any = Delegate(state.store, documents=Delegate(state.store.documents, get=lambda _: late()))
    await changed_after_the_read(
        state.policy.refresh(late_store, state.engine), late, put_policy(tiny, mandatory=[PUSH])
    )
    assert [one["vector"] for one in (await tiny.client.get("/v1/policy")).json()["mandatory"]] == ["mood@1"]


async def test_default_steering_stays_as_it_was_put(tiny: Server) -> None:
    state, late = tiny.state, Late(tiny.state.store.defaults)
    late_store: Any = Delegate(state.store, defaults=late)
    put = tiny.client.put("/v1/steering", json={"interventions": [PUSH]})
    await changed_after_the_read(state.default_steering.refresh(late_store, state.engine), late, put)
    assert [one.pinned.interventions[0].vector for one in state.default_steering.all()] == ["mood@1"]


async def test_a_revoked_key_stays_revoked(tiny: Server) -> None:
    state, late = tiny.state, Late(tiny.state.store.keys.all)
    admin = bearer((await created(tiny, name="admin", scopes=["admin"]))["key"])
    key = (await tiny.client.post("/v1/keys", json={"name": "leaving", "scopes": ["generate"]}, headers=admin)).json()
    late_store: Any = Delegate(state.store, keys=Delegate(state.store.keys, all=late))
    revoke = tiny.client.delete(f"/v1/keys/{key['id']}", headers=admin)
    assert (await changed_after_the_read(state.keys.refresh(late_store), late, revoke)).status_code == 204
    assert (await ask(tiny, key)).status_code == 401
