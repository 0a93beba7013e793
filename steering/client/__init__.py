"""The client of the HTTP API: `from steering.client import Client`. Imports no torch and no web framework."""

from steering.client.calls.errors import ApiError
from steering.client.client import AsyncClient, Client
from steering.client.retries import NO_RETRIES, Retries

__all__ = ["NO_RETRIES", "ApiError", "AsyncClient", "Client", "Retries"]
