"""Use cases that generate text: generate, compare, replay."""
