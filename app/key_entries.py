"""Reads API keys as an operator writes them in the environment or in a key file."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from steering.namespaces import NAMESPACE_PATTERN, SHARED

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{8,512}")
SCOPES = ("generate", "read", "write", "metrics", "admin")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of the environment or of a key file: `key`, `key:read+generate`, `key:read+generate@team-a` or `key@team-a`."""

    secret: str = field(repr=False)
    scopes: tuple[str, ...]
    namespace: str

    @classmethod
    def parse(cls, text: str) -> "KeyEntry":
        """Reads an entry; `check_entries` says what is wrong with one."""
        rest, _, namespace = text.partition("@")
        secret, colon, scopes = rest.partition(":")
        return cls(secret, tuple(scopes.split("+")) if colon else SCOPES, namespace if "@" in text else SHARED)


def check_entries(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the entries. Raises ValueError for text that is not a KeyEntry. Keys are never repeated in messages."""
    for position, text in enumerate(entries, 1):
        entry = KeyEntry.parse(text)
        if not _TOKEN.fullmatch(entry.secret):
            raise ValueError(f"key {position} must be 8 to 512 of A-Z a-z 0-9 . _ ~ + / = -")
        unknown = set(entry.scopes) - set(SCOPES)
        if unknown:
            raise ValueError(f"key {position} has unknown scopes {sorted(unknown)}; known: {SCOPES}")
        if not re.fullmatch(NAMESPACE_PATTERN, entry.namespace):
            raise ValueError(f"key {position} has a namespace that is no name: {NAMESPACE_PATTERN}")
    return entries


def key_entries(path: Path) -> tuple[str, ...]:
    """Reads a key file: one entry a line, `#` begins a comment. Raises OSError, ValueError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not entries:
        raise ValueError("the file has no key")
    return check_entries(entries)
