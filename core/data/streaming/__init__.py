"""Import of large tables in blocks."""
