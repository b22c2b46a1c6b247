"""Which column plays which role, and raw rows to canonical rows."""
