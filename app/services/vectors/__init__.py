"""Use cases around vectors: extraction, evaluation, files."""
