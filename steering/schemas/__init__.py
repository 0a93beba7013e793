"""Request and response models: pydantic only, no torch, no web framework."""
