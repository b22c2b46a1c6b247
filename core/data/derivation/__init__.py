"""Datasets made from other datasets, their data card and their download."""
