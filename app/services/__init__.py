"""Use cases: each module checks, prepares, runs and answers one kind of request."""
