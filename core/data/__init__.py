"""Training data: files to rows, splits and datasets on disk; then token ids, packed rows and batches.

Text only: readers, jsonrows, parquet, columns, splits, datasets, samples, prompts.
Token ids: encoding, span_corruption, replay, packing, collation.
"""
