"""The data room: files become rows, rows become splits, splits become a dataset on disk.

Knows file formats and rows of text. Knows nothing of models; only `batches` knows tokens.
"""
