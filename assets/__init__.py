"""Assets that ship with the studio: an invented world, a small base model trained on it, and sample data."""
