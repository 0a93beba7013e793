"""Builders of the calls of the API, one module per resource."""
