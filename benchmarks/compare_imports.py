"""Imports generated files in blocks and at once; both must give the same dataset, or the same error.

    python -m benchmarks.compare_imports                       500 files of each kind (about 10 minutes)
    python -m benchmarks.compare_imports --kinds zip --examples 2000

The files are those of tests/core/data/streaming, which tries a few. Progress is printed every few seconds.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.progress import LineClock
from tests.core.data.streaming.test_streamed_archives import json_files, pack
from tests.core.data.streaming.test_streamed_import import check_same, files

BLOCKS = (40, 300, 1 << 20)  # bytes that are read together
LARGE = (0, 200_000)  # rows from which on the rule of `large_splits` is used
# Kind of a file to its name, and how it is made of a table as JSONL and one as .json.
KINDS: dict[str, tuple[str, Callable[[bytes, bytes], bytes]]] = {
    "jsonl": ("a.jsonl", lambda lines, array: lines),
    "json": ("a.json", lambda lines, array: array),
    "gzip": ("a.jsonl.gz", lambda lines, array: gzip.compress(lines)),
    "zip": ("a.zip", lambda lines, array: pack({"b/rows.json": array, "a/rows.jsonl": lines})),
}


def compare(kind: str, examples: int) -> int:
    """Imports so many files in both ways; raises AssertionError at the first difference.

    Returns:
        How many files were compared.
    """
    name, make = KINDS[kind]
    clock, count = LineClock(), 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(lines=files(), array=json_files(), block=st.sampled_from(BLOCKS), large=st.sampled_from(LARGE))
    def compare_one(lines: bytes, array: bytes, block: int, large: int) -> None:
        nonlocal count
        with tempfile.TemporaryDirectory() as folder:
            check_same(Path(folder), make(lines, array), block, large, name)
        count += 1
        if clock.is_due():
            print(f"{kind}: {count} of {examples}", flush=True)

    compare_one()
    return count


def main() -> None:
    """Reads the command line and compares."""
    parser = argparse.ArgumentParser(description="Compare imports in blocks with imports at once.")
    parser.add_argument("--examples", type=int, default=500, help="Files of each kind to import.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="Kinds of files.")
    args = parser.parse_args()
    for kind in args.kinds:
        started = time.monotonic()
        count = compare(kind, args.examples)
        print(f"{kind}: {count} files, no difference, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
