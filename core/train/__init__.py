"""Training: from a run on disk to an adapter in the library, in one process or several."""
