"""Exports: adapters and mixes as files for other runtimes."""
