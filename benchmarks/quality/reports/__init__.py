"""Deployment reports of the starter concepts: at the operating point of each, and by several methods."""
