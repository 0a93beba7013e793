"""Readers of vector files of other tools."""
