"""Compiled passes on a CPU, behind PassExecutor: graphs compiled ahead of time by AOTInductor, C++ kernels, thread counts."""
