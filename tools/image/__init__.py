"""Checks the Dockerfile without a container engine: `python -m tools.image`."""
