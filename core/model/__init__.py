"""The model room: one resident base, the adapters that hang on it, mixing, generation, scoring."""
