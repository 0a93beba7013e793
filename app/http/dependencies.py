"""FastAPI dependencies of the handlers. They are coroutines, because FastAPI runs plain functions in a thread."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from app.http.admission import Admission
from app.services.context import Context
from app.state import AppState, state_of


async def _state(request: Request) -> AppState:
    return state_of(request)


async def _context(request: Request) -> Context:
    """Returns the server as this request may use it."""
    return Context(state_of(request), request.state.key, request.state.admission)


async def _admitted(request: Request) -> Context:
    """Takes one row at once, or raises Overloaded. RequestMiddleware returns all rows when the response has been sent."""
    admission: Admission = request.state.admission
    admission.take(1)
    return await _context(request)


StateDep = Annotated[AppState, Depends(_state)]
ContextDep = Annotated[Context, Depends(_context)]
AdmittedDep = Annotated[Context, Depends(_admitted)]
"""The context of a request that uses the engine."""
