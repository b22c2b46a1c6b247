"""Canonical rows to token ids: chat templates, masks, packing, truncation."""
