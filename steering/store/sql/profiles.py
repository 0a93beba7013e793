"""SqlProfiles: the ProfileStore on a database, the default steering included."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, final

from sqlalchemy import Select, and_, delete, exists, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute, aliased

from steering.errors import StoreCorrupt
from steering.namespaces import SHARED
from steering.spec import SteeringSpec, vector_names
from steering.store.base import Profile, ProfileName, ProfilePage, ProfileStore
from steering.store.formats.serialization import check_profile, profile_not_found, read_steering, write_steering
from steering.store.formats.stored_vector import check_profile_count
from steering.store.rules import check_page, entries_that_fit, make_cursor, now, read_cursor, values_of
from steering.store.sql.database import AnyRow, NamespacePart, exchange, upsert
from steering.store.sql.links import check_storage
from steering.store.sql.tables import DefaultSteeringRow, ProfileRow, columns_of
from steering.store.sql.vector_reads import require_vectors
from steering.threads import run_in_thread
from steering.vectors import check_name

OTHER = aliased(ProfileRow)


@final
class SqlProfiles(NamespacePart, ProfileStore):
    """The ProfileStore on a database."""

    async def put(self, profile: Profile) -> Profile:
        """See ProfileStore.put."""
        text = write_steering(profile.steering)
        values = {**values_of(check_profile(profile), Profile), "steering": text}
        values |= {"created_by": self._writer.key, "size": len(text)}
        key = self._key(profile.name)

        async def save(connection: AsyncConnection) -> Profile:
            await require_vectors(connection, self._namespace, vector_names(profile.steering))
            columns = select(ProfileRow.created_at, ProfileRow.created_by, ProfileRow.size)
            before = (await connection.execute(columns.filter_by(**key))).first()
            if before is None:
                own = ProfileRow.namespace == self._namespace
                count = await connection.scalar(select(func.count()).select_from(ProfileRow).where(own)) or 0
                check_profile_count(self._writer, count)
            replaced = before.size if before is not None and before.created_by == self._writer.key else 0
            await check_storage(connection, self._namespace, self._writer, len(text) - replaced)
            made = now() if before is None else before.created_at
            labels: dict[str, Any] = {"created_at": made, "updated_at": now(), "namespace": self._namespace}
            await connection.run_sync(upsert, ProfileRow, key, {**values, **labels})
            return replace(profile, **labels)

        return await self._database.write(save)

    async def get(self, name: str) -> Profile:
        """See ProfileStore.get."""
        query = self._visible(*columns_of(ProfileRow, Profile)).where(ProfileRow.name == check_name(name))
        rows = await self._database.rows(query)
        if not rows:
            raise profile_not_found(name)
        return _from_row(rows[0])

    async def find(self, limit: int = 50, cursor: str | None = None) -> ProfilePage:
        """See ProfileStore.find."""
        sizes = self._visible(ProfileRow.name, ProfileRow.size).limit(check_page(limit) + 1)
        if cursor is not None:
            sizes = sizes.where(ProfileRow.name > read_cursor("profile", cursor))
        listed = await self._database.rows(sizes)
        count = entries_that_fit(row.size for row in listed[:limit])
        following = make_cursor("profile", listed[count - 1].name) if len(listed) > count else None
        chosen = ProfileRow.name.in_([row.name for row in listed[:count]])
        rows = await self._database.rows(self._visible(*columns_of(ProfileRow, Profile)).where(chosen))
        profiles, damaged = await run_in_thread(_read_valid, rows)
        return ProfilePage(profiles, following, damaged)

    async def names(self, limit: int | None = None) -> tuple[ProfileName, ...]:
        """See ProfileStore.names."""
        rows = await self._database.rows(self._visible(*columns_of(ProfileRow, ProfileName)).limit(limit))
        return tuple(ProfileName(*row) for row in rows)

    async def delete(self, name: str) -> None:
        """See ProfileStore.delete."""
        if not await self._database.change(delete(ProfileRow).filter_by(**self._key(check_name(name))), when_full=True):
            raise profile_not_found(name)

    async def default(self) -> SteeringSpec | None:
        """See ProfileStore.default."""
        own = DefaultSteeringRow.namespace == self._namespace
        rows = await self._database.rows(select(DefaultSteeringRow.steering).where(own))
        return read_steering(rows[0].steering, default_of(self._namespace)) if rows else None

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """See ProfileStore.set_default."""
        values = None if steering is None else {"steering": write_steering(steering), "updated_at": now()}
        names = () if steering is None else tuple(vector_names(steering))

        async def save(connection: AsyncConnection) -> None:
            await require_vectors(connection, self._namespace, names)
            key = {"namespace": self._namespace}
            await connection.run_sync(exchange, "default_steering", DefaultSteeringRow, key, values)

        await self._database.write(save, when_full=steering is None)

    def _key(self, name: str) -> dict[str, str]:
        return {"namespace": self._namespace, "name": name}

    def _visible(self, *columns: InstrumentedAttribute[Any]) -> Select[*tuple[Any, ...]]:
        """Selects profiles by name, those of the own namespace in place of the shared ones of the same name."""
        same_name = and_(OTHER.namespace == self._namespace, OTHER.name == ProfileRow.name)
        hidden = exists().where(same_name).correlate(ProfileRow)
        own, shared = ProfileRow.namespace == self._namespace, ProfileRow.namespace == SHARED
        return select(*columns).where(or_(own, and_(shared, not_(hidden)))).order_by(ProfileRow.name)


def default_of(namespace: str) -> str:
    """Names a default steering in messages."""
    return f"the default steering of namespace {namespace!r}"


def _read_valid(rows: Iterable[AnyRow]) -> tuple[tuple[Profile, ...], tuple[str, ...]]:
    """Returns profiles, and the names of those that cannot be read."""
    valid, damaged = list[Profile](), list[str]()
    for row in rows:
        try:
            valid.append(_from_row(row))
        except StoreCorrupt:
            damaged.append(row.name)
    return tuple(valid), tuple(damaged)


def _from_row(row: AnyRow) -> Profile:
    steering = read_steering(row.steering, f"profile {row.name!r}")
    return Profile(**{**values_of(row, Profile), "steering": steering})
