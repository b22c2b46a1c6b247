"""Retrieval: documents in chunks, their index, and prompts with passages."""
