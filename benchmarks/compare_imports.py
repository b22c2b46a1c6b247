"""Imports generated JSONL files in blocks and at once; both must give the same dataset, or the same error.

    python -m benchmarks.compare_imports --examples 2000

The files are those of tests/core/data/test_streamed_import.py, which tries a few.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.data.test_streamed_import import check_same, files

BLOCKS = (40, 300, 1 << 20)  # bytes that are read together
LARGE = (0, 200_000)  # rows from which on the rule of `large_splits` is used


def compare(examples: int) -> None:
    """Imports so many files in both ways; raises AssertionError at the first difference."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(content=files(), block=st.sampled_from(BLOCKS), large=st.sampled_from(LARGE))
    def compare_one(content: bytes, block: int, large: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check_same(Path(folder), content, block, large)

    compare_one()


def main() -> None:
    """Reads the command line and compares."""
    parser = argparse.ArgumentParser(description="Compare imports in blocks with imports at once.")
    parser.add_argument("--examples", type=int, default=2000, help="Files to import.")
    examples = parser.parse_args().examples
    compare(examples)
    print(f"{examples} files, no difference")


if __name__ == "__main__":
    main()
