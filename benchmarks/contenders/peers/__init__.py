"""Peers. Each runs in its own environment and imports only modules of ours that need the standard library alone."""
