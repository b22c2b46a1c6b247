"""Layouts of other tools: recognized by their columns, rewritten into rows with the usual columns."""
