"""Loads transformers models and finds the parts that steering needs."""
