"""The words on the wire: pydantic only, no torch, no web framework."""
