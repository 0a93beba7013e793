"""FastAPI dependencies of the handlers. They are coroutines, because FastAPI runs plain functions in a thread."""

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request

from app.policy.keys import Key
from app.services.context import Context
from app.state import AppState, state_of
from steering.schemas.base import NamespaceName

Namespace = Annotated[NamespaceName | None, Query(description="For admins: whose vectors, profiles and jobs.")]


async def _state(request: Request) -> AppState:
    return state_of(request)


async def _context(request: Request, namespace: Namespace = None) -> Context:
    """Returns the server as this request may use it. Raises InsufficientScope for the namespace of others."""
    key: Key = request.state.key
    return Context(state_of(request), key, request.state.admission, key.namespace_for(namespace))


async def _admitted(request: Request, namespace: Namespace = None) -> Context:
    """Takes one row at once, or raises Overloaded. RequestMiddleware returns all rows when the response has been sent."""
    context = await _context(request, namespace)
    context.admission.take(1)
    return context


StateDep = Annotated[AppState, Depends(_state)]
ContextDep = Annotated[Context, Depends(_context)]
AdmittedDep = Annotated[Context, Depends(_admitted)]
"""The context of a request that uses the engine."""
