"""Importing large files: CPU time beside `datasets.load_dataset`, peak memory, and the pages of a preview.

    python -m benchmarks.data            1 GB of JSONL (3 million rows), 1 million rows in other formats,
                                         10 million short rows
    python -m benchmarks.data --quick    200 MB of JSONL, less of the rest
    python -m benchmarks.data --json     the last line is one JSON object

CPU time is user and system time of a child process, which is the whole command: the import is
`python -m core data add`, the other side `load_dataset` with a cache folder of its own, on the same file in
the same run. Peak memory is the largest resident set of that process.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS, QUICK_ROWS = 3_000_000, 600_000  # about 340 bytes each
TABLE_ROWS, QUICK_TABLE_ROWS = 1_000_000, 100_000  # of the CSV and parquet files
PAGE_ROWS = 10_000_000
PAGE = 20  # rows of a page
LOAD = (
    "import sys; from datasets import load_dataset;"
    "load_dataset('json', data_files=sys.argv[1], cache_dir=sys.argv[2])"
)


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        cpu: user and system time in seconds.
        wall: seconds.
        peak_mb: its largest resident set, in 10^6 bytes.
        output: its standard output.
    """

    cpu: float
    wall: float
    peak_mb: float
    output: str


def measure(*command: str) -> Cost:
    """Runs a command as a child process and measures it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        output = out.read()
    if child.returncode:
        sys.exit(f"{' '.join(command[:6])} ended with exit code {child.returncode}: {output[-500:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - started, peak / 1e6, output)


def import_file(path: Path, workspace: Path) -> tuple[Cost, str]:
    """Imports a file with the terminal's command; returns its cost and the id of the dataset."""
    cost = measure(
        sys.executable, "-m", "core", "data", "add", str(path), "--workspace", str(workspace), "--json"
    )
    return cost, json.loads(cost.output.splitlines()[-1])["id"]


def make_rows(count: int, words: int = 26) -> Iterator[dict[str, str]]:
    """Questions with answers of made-up words; some have quotes, line breaks and letters outside ASCII."""
    draw = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(4000)]
    vocabulary += ["naïve", "Straße", '"so-called"', "café"]
    pool = [" ".join(draw.choices(vocabulary, k=words // 2)) for _ in range(20_000)]
    for number in range(count):
        end = "\n" if number % 5 == 0 else ". "
        yield {
            "question": f"What does note {number} say about {draw.choice(pool)}?",
            "answer": f"{draw.choice(pool)}{end}{draw.choice(pool)}.",
        }


def write_jsonl(path: Path, count: int) -> Path:
    """Writes such rows, one object a line."""
    with open(path, "w", encoding="utf-8") as f:
        for row in make_rows(count):
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def write_csv(path: Path, count: int) -> Path:
    """Writes such rows as CSV."""
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, ["question", "answer"])
        writer.writeheader()
        writer.writerows(make_rows(count))
    return path


def write_json(path: Path, count: int) -> Path:
    """Writes such rows as one array, on one line."""
    with open(path, "w", encoding="utf-8") as f:
        for number, row in enumerate(make_rows(count)):
            f.write(("," if number else "[") + json.dumps(row, ensure_ascii=False))
        f.write("]")
    return path


def write_gzip(path: Path, count: int) -> Path:
    """Writes such rows as compressed JSONL."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as f:
        for row in make_rows(count):
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def write_zip(path: Path, count: int) -> Path:
    """Writes such rows as two files of JSONL in a zip."""
    lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in make_rows(count))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("a.jsonl", "b.jsonl"):
            with archive.open(name, "w") as f:
                f.writelines(itertools.islice(lines, -(-count // 2)))
    return path


def write_short(path: Path, count: int) -> Path:
    """Writes many short rows in little time."""
    with open(path, "w", encoding="utf-8") as f:
        for begin in range(0, count, 10_000):
            numbers = range(begin, min(begin + 10_000, count))
            f.write("".join(f'{{"question": "What is in box {n}?", "answer": "A lamp."}}\n' for n in numbers))
    return path


def write_parquet(path: Path, count: int) -> Path:
    """Writes such rows as parquet, in a process of its own, whose memory does not count."""
    code = (
        "import sys, json, pyarrow.json as j, pyarrow.parquet as p;"
        "p.write_table(j.read_json(sys.argv[1]), sys.argv[2])"
    )
    source = write_jsonl(path.with_suffix(".jsonl"), count)
    subprocess.run([sys.executable, "-c", code, str(source), str(path)], check=True)
    source.unlink()
    return path


WRITERS = {
    "csv": write_csv,
    "parquet": write_parquet,
    "json": write_json,
    "jsonl.gz": write_gzip,
    "zip": write_zip,
}  # suffix of a file to what writes it


def time_pages(workspace: Path, dataset_id: str) -> float:
    """The slowest of some pages of a dataset's preview, in milliseconds."""
    code = (
        "import sys, time; from core.engine import Engine\n"
        "with Engine(sys.argv[1], load=False) as engine:\n"
        "    total, slowest = engine.datasets.get(sys.argv[2]).rows, 0.0\n"
        "    for share in (0.0, 0.13, 0.5, 0.71, 0.999):\n"
        "        started = time.perf_counter()\n"
        f"        rows = engine.datasets.rows(sys.argv[2], 'all', {PAGE}, int(share * total))\n"
        f"        assert len(rows) == {PAGE}, len(rows)\n"
        "        slowest = max(slowest, time.perf_counter() - started)\n"
        "print(1000 * slowest)\n"
    )
    return float(measure(sys.executable, "-c", code, str(workspace), dataset_id).output)


def time_preview(path: Path) -> float:
    """How long the preview of a file takes that is not imported yet, in seconds."""
    code = (
        "import sys, time; from core.data import datasets; started = time.perf_counter();"
        "datasets.preview([sys.argv[1]]); print(time.perf_counter() - started)"
    )
    return float(measure(sys.executable, "-c", code, str(path)).output)


def run(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Runs all measurements and prints each."""
    results: dict[str, Any] = {"quick": is_quick}
    workspace = folder / "workspace"
    path = write_jsonl(folder / "rows.jsonl", QUICK_ROWS if is_quick else ROWS)
    size = path.stat().st_size
    ours, dataset_id = import_file(path, workspace)
    theirs = measure(sys.executable, "-c", LOAD, str(path), str(folder / "cache"))
    results["jsonl_mb"] = round(size / 1e6)
    results["import_cpu"], results["datasets_cpu"] = round(ours.cpu, 2), round(theirs.cpu, 2)
    results["import_wall"], results["datasets_wall"] = round(ours.wall, 2), round(theirs.wall, 2)
    results["import_cpu_over_datasets"] = round(ours.cpu / theirs.cpu, 3)
    results["peak_mb"], results["datasets_peak_mb"] = round(ours.peak_mb), round(theirs.peak_mb)
    print(f"{size / 1e6:.0f} MB of JSONL: {ours.cpu:.2f} s CPU, {ours.peak_mb:.0f} MB; ", end="")
    print(f"load_dataset: {theirs.cpu:.2f} s, {theirs.peak_mb:.0f} MB", flush=True)
    results["preview_seconds"] = round(time_preview(path), 3)
    print(f"preview of the file: {results['preview_seconds']:.2f} s", flush=True)
    path.unlink()
    table_rows = QUICK_TABLE_ROWS if is_quick else TABLE_ROWS
    for name, write in WRITERS.items():
        path = write(folder / f"rows.{name}", table_rows)
        cost, _ = import_file(path, workspace)
        results["table_rows"] = table_rows
        results[f"{name}_cpu"], results[f"{name}_peak_mb"] = round(cost.cpu, 2), round(cost.peak_mb)
        print(f"{table_rows:,} rows of {name}: {cost.cpu:.2f} s CPU, {cost.peak_mb:.0f} MB", flush=True)
        path.unlink()
    if not is_quick:
        cost, dataset_id = import_file(write_short(folder / "short.jsonl", PAGE_ROWS), workspace)
        results["page_import_cpu"], results["page_import_peak_mb"] = round(cost.cpu, 2), round(cost.peak_mb)
        print(f"{PAGE_ROWS:,} short rows: {cost.cpu:.2f} s CPU, {cost.peak_mb:.0f} MB", flush=True)
    results["page_ms"] = round(time_pages(workspace, dataset_id), 1)
    print(f"the slowest page of {PAGE} rows: {results['page_ms']:.1f} ms", flush=True)
    return results


def main() -> None:
    """Reads the command line and runs the measurements in a temporary folder."""
    parser = argparse.ArgumentParser(description="Measure the import of large files.")
    parser.add_argument("--quick", action="store_true", help="Smaller files.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line.")
    parser.add_argument(
        "--folder", help="Where the files are written. Default: the system's temporary folder."
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = run(Path(folder), args.quick)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
