"""Evaluation: measures mixes on data, answers suites of prompts, computes metrics."""
