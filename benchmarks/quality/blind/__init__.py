"""Pairs of answers that a second model and a reader distinguish without knowing which was steered up."""
