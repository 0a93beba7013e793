"""Benchmarks of the engine and the server, run by `python -m benchmarks`."""
