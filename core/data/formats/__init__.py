"""Files to raw rows: containers, encodings, CSV, JSON, workbooks, parquet, datasets of the Hub."""
