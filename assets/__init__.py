"""What the studio ships with: an invented world, a small base model trained on it, and sample data."""
