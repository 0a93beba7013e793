"""Compiled execution: graphs exported once, compiled ahead of time by AOTInductor in a worker process, and run by CompiledExecutor."""
