"""A change that this server made is in force here, whatever a refresh read before it and whatever fails after it."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Generic, Never, ParamSpec, TypeVar

import pytest

from steering.errors import NotReady, StoreUnavailable
from steering.spec import SteeringSpec
from steering.store.records import KeyEdit, KeyRecord
from steering.store.store import NamespaceStore, Store
from tests.app.changed_store import ChangedStore, changed, fails
from tests.app.conftest import Server, StartServer
from tests.app.policy.conftest import put_policy
from tests.app.policy.test_keys import ADMIN, ask, bearer, code, created

PUSH = {"vector": "mood", "strength": 3.0, "layers": [1]}
OTHER = {**PUSH, "vector": "other@1"}
P = ParamSpec("P")
T = TypeVar("T")


class Late(Generic[P, T]):
    """A read of the database whose caller gets what was read only when `opened` is set."""

    def __init__(self, read: Callable[P, Coroutine[Any, Any, T]]) -> None:
        self._read = read
        self.has_read, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args: P.args, **named: P.kwargs) -> T:
        """Reads, and waits."""
        found = await self._read(*args, **named)
        self.has_read.set()
        await self.opened.wait()
        return found


async def changed_after_the_read(
    refresh: Coroutine[Any, Any, None], late: Late[..., Any], change: Coroutine[Any, Any, T]
) -> T:
    """Makes a change between the read of a refresh and its end, as far as the server lets it. Returns its result."""
    refreshing = asyncio.create_task(refresh)
    await late.has_read.wait()
    changing = asyncio.create_task(change)
    await asyncio.wait([changing], timeout=0.3)
    late.opened.set()
    await refreshing
    return await changing


async def test_a_policy_stays_as_it_was_put(tiny: Server) -> None:
    state, late = tiny.state, Late(tiny.state.store.documents.get)
    await put_policy(tiny, limits={"own_steering": "none"})
    state.policy._content = None  # this server has not read it yet, as when another server has set it
    await changed_after_the_read(
        state.policy.refresh(_reading(state.store, late), state.engine), late, put_policy(tiny, mandatory=[PUSH])
    )
    assert [one["vector"] for one in (await tiny.client.get("/v1/policy")).json()["mandatory"]] == ["mood@1"]


def _reading(store: Store, late: Late[..., Mapping[str, Any] | None]) -> Store:
    """A store whose documents are read late."""
    return changed(store, documents=changed(store.documents, get=late))


async def test_default_steering_stays_as_it_was_put(tiny: Server) -> None:
    state, late = tiny.state, Late(tiny.state.store.defaults)
    late_store = changed(state.store, defaults=late)
    put = tiny.client.put("/v1/steering", json={"interventions": [PUSH]})
    await changed_after_the_read(state.default_steering.refresh(late_store, state.engine), late, put)
    assert [one.pinned.interventions[0].vector for one in state.default_steering.by_namespace.values()] == ["mood@1"]


async def test_a_policy_that_mends_a_damaged_one_stays_although_that_one_was_read_before(tiny: Server) -> None:
    state, real = tiny.state, tiny.state.store.documents
    await real.put("policy", {"of a later version": 1})
    late = Late(real.get)
    await changed_after_the_read(
        state.policy.refresh(_reading(state.store, late), state.engine), late, put_policy(tiny, mandatory=[PUSH])
    )
    assert [one["vector"] for one in (await tiny.client.get("/v1/policy")).json()["mandatory"]] == ["mood@1"]


async def test_a_revoked_key_stays_revoked(tiny: Server) -> None:
    state, late = tiny.state, Late(tiny.state.store.keys.all)
    admin = bearer((await created(tiny, name="admin", scopes=["admin"]))["key"])
    key = (await tiny.client.post("/v1/keys", json={"name": "leaving", "scopes": ["generate"]}, headers=admin)).json()
    late_store = changed(state.store, keys=changed(state.store.keys, all=late))
    revoke = tiny.client.delete(f"/v1/keys/{key['id']}", headers=admin)
    assert (await changed_after_the_read(state.keys.refresh(late_store), late, revoke)).status_code == 204
    assert (await ask(tiny, key)).status_code == 401


async def waits(*_: object, **__: object) -> Never:
    """Waits as for a database that another server writes to."""
    while True:
        await asyncio.Event().wait()


@pytest.mark.parametrize("touch", [fails, waits])
async def test_changes_of_keys_are_in_force_although_reads_fail_and_other_writes_wait(
    start: StartServer, touch: Callable[..., Coroutine[Any, Any, Never]]
) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(bearer(ADMIN))
    key, other = await created(server), await created(server)
    server.state.store.keys = changed(server.state.store.keys, all=fails, touch=touch)
    assert (await ask(server, key)).status_code == 200
    assert (await server.client.delete(f"/v1/keys/{key['id']}")).status_code == 204
    assert code(await ask(server, key)) == (401, "invalid_api_key")
    await server.client.patch(f"/v1/keys/{other['id']}", json={"scopes": ["read"]})
    assert code(await ask(server, other)) == (403, "insufficient_scope")
    assert (await ask(server, await created(server))).status_code == 200


async def test_a_refresh_of_keys_writes_nothing(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(bearer(ADMIN))
    key, keys = await created(server), server.state.store.keys
    assert (await ask(server, key)).status_code == 200
    await keys.edit(key["id"], lambda *_: None)  # as another server does
    await server.state.keys.refresh(_touched_by(server.state.store, waits))
    assert code(await ask(server, key)) == (401, "invalid_api_key")


def _touched_by(store: Store, touch: Callable[..., Coroutine[Any, Any, Never]]) -> Store:
    return changed(store, keys=changed(store.keys, touch=touch))


async def test_when_a_key_was_used_is_stored_later_if_it_fails(start: StartServer) -> None:
    server = await start(api_keys=ADMIN)
    server.client.headers.update(bearer(ADMIN))
    key, keys, state = await created(server), server.state.store.keys, server.state
    assert (await ask(server, key)).status_code == 200
    with pytest.raises(StoreUnavailable):
        await state.keys.store_use(_touched_by(state.store, fails))
    (listed,) = (await server.client.get("/v1/keys")).json()["data"]
    assert (await keys.all())[0].last_used_at is None
    await state.keys.store_use(state.store)
    assert (await keys.all())[0].last_used_at is not None
    assert (await server.client.get("/v1/keys")).json()["data"] == [listed]


async def test_a_change_of_a_key_by_one_server_does_not_bring_back_what_another_revoked(start: StartServer) -> None:
    one, other = await start(api_keys=ADMIN), await start(api_keys=ADMIN)
    shared = other.state.jobs.store = one.state.store
    for server in (one, other):
        server.client.headers.update(bearer(ADMIN))
    key, reached, opened = await created(one), asyncio.Event(), asyncio.Event()

    async def late(key_id: str, edit: KeyEdit) -> KeyRecord | None:
        reached.set()
        await opened.wait()
        return await shared.keys.edit(key_id, edit)

    one.state.jobs.store = changed(shared, keys=changed(shared.keys, edit=late))
    changing = asyncio.create_task(one.client.patch(f"/v1/keys/{key['id']}", json={"name": "x"}))
    await reached.wait()
    assert (await other.client.delete(f"/v1/keys/{key['id']}")).status_code == 204
    opened.set()
    assert code(await changing) == (404, "key_not_found")
    assert await shared.keys.all() == ()
    await one.state.keys.refresh(shared)
    assert code(await ask(one, key)) == (401, "invalid_api_key")


async def test_a_key_whose_limits_cannot_be_read_may_do_nothing(start: StartServer) -> None:
    server = await start()
    admin = bearer((await created(server, name="admin", scopes=["admin"]))["key"])
    key = (await server.client.post("/v1/keys", json={"name": "team", "scopes": ["admin"]}, headers=admin)).json()
    await server.state.store.keys.edit(key["id"], lambda *_: {"limits": {"of a later version": 1}})
    await server.state.keys.refresh(server.state.store)
    assert code(await ask(server, key)) == (403, "insufficient_scope")
    assert (await server.client.get("/v1/keys")).status_code == 401, "the server is not open to everybody"
    listed = (await server.client.get("/v1/keys", headers=admin)).json()["data"]
    assert {one["name"]: one["scopes"] for one in listed} == {"admin": ["admin"], "team": []}
    assert (await server.client.delete(f"/v1/keys/{key['id']}", headers=admin)).status_code == 204


def _unread(found: NamespaceStore) -> NamespaceStore:
    """The same without a vector that can be read."""
    return replace(found, vectors=changed(found.vectors, get=fails))


async def test_a_default_whose_vector_could_not_be_read_leaves_the_last_one_in_use(tiny: Server) -> None:
    state = tiny.state
    assert (await tiny.client.put("/v1/steering", json={"interventions": [PUSH]})).status_code == 200
    await state.store.shared.profiles.set_default(SteeringSpec.model_validate({"interventions": [OTHER]}))
    real = state.store.shared
    store = ChangedStore(state.store, _unread)
    names = []
    for source in (store, state.store):
        with contextlib.suppress(StoreUnavailable):
            await state.default_steering.refresh(source, state.engine)
        names.append(state.default_steering.by_namespace["shared"].pinned.interventions[0].vector)
    assert names == ["mood@1", "other@1"]
    with pytest.raises(StoreUnavailable):
        await state.default_steering.put(
            SteeringSpec.model_validate({"interventions": [PUSH]}), _unread(real), state.engine
        )
    assert (await real.profiles.default()) == SteeringSpec.model_validate({"interventions": [OTHER]})


async def test_a_default_whose_vector_could_not_be_read_holds_up_no_other_namespace(tiny: Server) -> None:
    state = tiny.state
    for namespace in ("shared", "team-b"):
        default = SteeringSpec.model_validate({"interventions": [OTHER]})
        await state.store.in_namespace(namespace).profiles.set_default(default)
    store = ChangedStore(state.store, lambda found: _unread(found) if found.namespace == "team-b" else found)
    with pytest.raises(StoreUnavailable):
        await state.default_steering.refresh(store, state.engine)
    assert list(state.default_steering.by_namespace) == ["shared"]
    with pytest.raises(NotReady):
        state.default_steering.resolved_in("team-b")
    await state.default_steering.refresh(state.store, state.engine)
    assert state.default_steering.resolved_in("team-b").pinned.interventions[0].vector == "other@1"
