"""Merging: bakes a mix of adapters into one adapter."""
