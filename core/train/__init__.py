"""The training trade: runs on disk, checkpoints that can be trusted, and the trainer itself."""
