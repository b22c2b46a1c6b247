"""What a dataset holds: lengths, repeats, languages, leaks, control tokens, personal data."""
