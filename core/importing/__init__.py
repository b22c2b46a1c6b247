"""Adapters that other tools made: read within bounds, examined, rewritten as plain LoRA."""
