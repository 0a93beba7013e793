"""Namespaces of vectors, profiles and jobs: names carry none, and a key sees its own namespace and `shared`."""

SHARED = "shared"
"""The namespace that everybody sees."""
NAMESPACE_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def visible_from(namespace: str) -> tuple[str, ...]:
    """Returns the namespaces that are seen from one, in the order in which names are looked up."""
    return (SHARED,) if namespace == SHARED else (namespace, SHARED)
