"""Saves states of the playground's views as links, and says whose links a caller lists and deletes."""

import base64
import secrets

from app.services.context import Context
from app.services.limits import check_limit
from steering.namespaces import SHARED
from steering.schemas.resources import LinkRequest
from steering.store.base import Link
from steering.strict_json import dump_json
from steering.threads import run_in_thread

ID_BYTES = 10
"""Random bytes of an id: 80 bits are 16 characters in base 32. The id is all that protects a state from other keys."""


async def save(context: Context, body: LinkRequest) -> Link:
    """Stores a state under a new id. Raises LimitExceeded for a state that is too large, StorageFull."""
    text = await run_in_thread(dump_json, body.state, "state")
    check_limit(len(text), context.settings.max_link_bytes, "bytes of state", "state")
    link_id = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()
    return await context.store.links.put(Link(link_id, body.view, body.state))


def owner_of(context: Context) -> str | None:
    """Returns whose links the request lists and deletes; None for those of every key of the namespace.

    The keys of a namespace own its links together, so a key that replaces another has those of the former one. `shared` is
    where keys are that have nothing to do with each other: each has its own links there, and an admin all of them.
    """
    everyone = "admin" in context.key.scopes or context.namespace != SHARED
    return None if everyone else context.key.name
