"""The client of the HTTP API: `from steering.client import Client`. Imports no torch and no web framework."""

from steering.client.api import AsyncClient, Client
from steering.client.connection import NO_RETRIES, ApiError, ProgressBar, Retries

__all__ = ["NO_RETRIES", "ApiError", "AsyncClient", "Client", "ProgressBar", "Retries"]
