"""One transformers model, opened up."""
