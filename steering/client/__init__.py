"""The client of the HTTP API: `from steering.client import Client`. Imports no torch and no web framework."""

from steering.client.calls.errors import NO_RETRIES, ApiError, Retries
from steering.client.client import AsyncClient, Client

__all__ = ["NO_RETRIES", "ApiError", "AsyncClient", "Client", "Retries"]
