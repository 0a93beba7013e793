"""The OpenAI-compatible routes: models, chat and text completions, embeddings."""
