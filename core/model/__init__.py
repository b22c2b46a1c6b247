"""The resident base and the adapters on it: loading, mixing, generation, scoring, and low-rank deltas."""
