"""Long work over an Engine: evaluations, reports, transfer between models, dictionaries."""
