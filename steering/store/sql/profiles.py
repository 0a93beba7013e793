"""SqlProfiles and SqlLinks: profiles, the default steering and links on a database; the bytes that a key has stored."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import visible_from
from steering.spec import SteeringSpec
from steering.store.base import Profile, Writer
from steering.store.formats.serialization import (
    check_link,
    check_profile,
    is_link_id,
    link_not_found,
    profile_not_found,
    read_record,
    read_steering,
    write_steering,
)
from steering.store.formats.stored_vector import check_link_count, check_quota
from steering.store.links import Link
from steering.store.rules import now
from steering.store.sql.database import Database
from steering.store.sql.servers import note_change
from steering.store.sql.tables import DefaultSteeringRow, LinkRow, ProfileRow, VectorRow
from steering.vectors import check_name

COLUMNS = (
    ProfileRow.namespace,
    ProfileRow.name,
    ProfileRow.description,
    ProfileRow.steering,
    ProfileRow.created_at,
    ProfileRow.updated_at,
)


@final
class SqlProfiles:
    """See `steering.store.base.ProfileStore`."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database, self._namespace = database, namespace

    async def put(self, profile: Profile) -> Profile:
        """See ProfileStore.put."""
        check_profile(profile)
        values = {"description": profile.description, "steering": write_steering(profile.steering)}
        own = self._own(profile.name)

        async def save(connection: AsyncConnection) -> Profile:
            created = await connection.scalar(select(ProfileRow.created_at).where(own))
            stored = replace(profile, created_at=created or now(), updated_at=now(), namespace=self._namespace)
            labels = {name: getattr(stored, name) for name in ("namespace", "name", "created_at", "updated_at")}
            change = insert(ProfileRow) if created is None else update(ProfileRow).where(own)
            await connection.execute(change.values({**values, **labels}))
            return stored

        return await self._database.write(save)

    async def get(self, name: str) -> Profile:
        """See ProfileStore.get."""
        found = await self._visible(ProfileRow.name == check_name(name))
        if not found:
            raise profile_not_found(name)
        return found[0]

    async def all(self) -> tuple[Profile, ...]:
        """See ProfileStore.all."""
        return await self._visible()

    async def delete(self, name: str) -> None:
        """See ProfileStore.delete."""
        if not await self._database.change(delete(ProfileRow).where(self._own(check_name(name)))):
            raise profile_not_found(name)

    async def default(self) -> SteeringSpec | None:
        """See ProfileStore.default."""
        own = DefaultSteeringRow.namespace == self._namespace
        rows = await self._database.rows(select(DefaultSteeringRow.steering).where(own))
        return read_steering(rows[0][0], "the default steering") if rows else None

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """See ProfileStore.set_default."""

        async def exchange(connection: AsyncConnection) -> None:
            await note_change(connection, "default_steering")
            own = DefaultSteeringRow.namespace == self._namespace
            await connection.execute(delete(DefaultSteeringRow).where(own))
            if steering is not None:
                row = {"namespace": self._namespace, "steering": write_steering(steering), "updated_at": now()}
                await connection.execute(insert(DefaultSteeringRow).values(row))

        await self._database.write(exchange)

    def _own(self, name: str) -> ColumnElement[bool]:
        return and_(ProfileRow.namespace == self._namespace, ProfileRow.name == name)

    async def _visible(self, *conditions: ColumnElement[bool]) -> tuple[Profile, ...]:
        """Returns profiles by name, those of the own namespace in place of the shared ones of the same name."""
        visible = visible_from(self._namespace)
        query = select(*COLUMNS).where(ProfileRow.namespace.in_(visible), *conditions).order_by(ProfileRow.name)
        found: dict[str, Sequence[Any]] = {}
        for row in await self._database.rows(query):
            if row[1] not in found or row[0] == self._namespace:
                found[row[1]] = row
        return tuple(map(_from_row, found.values()))


async def read_defaults(database: Database) -> dict[str, SteeringSpec]:
    """Returns the default steering of every namespace that has one."""
    rows = await database.rows(select(DefaultSteeringRow.namespace, DefaultSteeringRow.steering))
    return {namespace: read_steering(text, "the default steering") for namespace, text in rows}


def _from_row(row: Sequence[Any]) -> Profile:
    namespace, name, description, steering, created_at, updated_at = row
    where = f"profile {name!r}"
    return Profile(name, read_steering(steering, where), description, created_at, updated_at, namespace)


LINK_COLUMNS = (LinkRow.id, LinkRow.view, LinkRow.size, LinkRow.created_by, LinkRow.created_at, LinkRow.namespace)


@final
class SqlLinks:
    """See `steering.store.links.LinkStore`."""

    def __init__(self, database: Database, namespace: str, writer: Writer) -> None:
        self._database, self._namespace, self._writer = database, namespace, writer

    async def put(self, link: Link) -> Link:
        """See LinkStore.put."""
        state = check_link(link)
        owner, namespace = self._writer.key, self._namespace

        async def add(connection: AsyncConnection) -> Link:
            await check_storage(connection, namespace, self._writer, len(state))
            own = (LinkRow.namespace == namespace, LinkRow.created_by == owner)
            check_link_count(self._writer, await connection.scalar(select(func.count(LinkRow.id)).where(*own)) or 0)
            stored = replace(link, size=len(state), owner=owner, created_at=now(), namespace=namespace)
            labels = {name: getattr(stored, name) for name in ("id", "view", "size", "created_at", "namespace")}
            await connection.execute(insert(LinkRow).values({**labels, "created_by": owner, "state": state}))
            return stored

        return await self._database.write(add)

    async def get(self, link_id: str) -> Link:
        """See LinkStore.get."""
        query = select(*LINK_COLUMNS, LinkRow.state).where(LinkRow.id == link_id)
        rows = await self._database.rows(query) if is_link_id(link_id) else []
        if not rows:
            raise link_not_found(link_id)
        return replace(_link(rows[0][:-1]), state=read_record(rows[0][-1], f"link {link_id}"))

    async def find(
        self, owner: str | None, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[Link, ...], str | None]:
        """See LinkStore.find."""
        query = select(*LINK_COLUMNS).where(*self._owned(owner))
        rows, following = await self._database.newest(query, LinkRow.position, "link", limit, cursor)
        return tuple(map(_link, rows)), following

    async def delete(self, link_id: str, owner: str | None) -> None:
        """See LinkStore.delete."""
        own = delete(LinkRow).where(LinkRow.id == link_id, *self._owned(owner))
        if not is_link_id(link_id) or not await self._database.change(own):
            raise link_not_found(link_id)

    def _owned(self, owner: str | None) -> list[ColumnElement[bool]]:
        in_namespace = LinkRow.namespace == self._namespace
        return [in_namespace] if owner is None else [in_namespace, LinkRow.created_by == owner]


def _link(row: Sequence[Any]) -> Link:
    link_id, view, size, owner, created_at, namespace = row
    return Link(link_id, view, None, size, owner, created_at, namespace)


async def prune_links(database: Database, before: str) -> int:
    """Deletes the links of every namespace that were saved before a time; returns how many."""
    return await database.change(delete(LinkRow).where(LinkRow.created_at < before))


async def check_storage(connection: AsyncConnection, namespace: str, writer: Writer, size: int) -> None:
    """Raises StorageFull when a writer's vectors and links in a namespace would take too many bytes with `size` more."""
    if writer.max_bytes is None:
        return
    used = 0
    for row in (VectorRow, LinkRow):
        own = (row.namespace == namespace, row.created_by == writer.key)
        used += await connection.scalar(select(func.sum(row.size)).where(*own)) or 0
    check_quota(writer, int(used), size)
