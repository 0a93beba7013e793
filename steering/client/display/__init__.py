"""Renders results as HTML for notebooks and files. Pages are self-contained and show model text as text."""
