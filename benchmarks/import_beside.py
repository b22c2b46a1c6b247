"""Speed of answers beside an import of a large file: on a thread of the same process, and in its own process.

    python -m benchmarks.import_beside               100 MB of JSONL, three turns (about 3 minutes)
    python -m benchmarks.import_beside --quick       30 MB, one turn

The embedded base continues a text; its tokens are counted alone, while `engine.datasets.import_files` runs on
a thread beside it, and while `engine.imports` runs. The three take turns, because other programs falsify the
figures: "load" is the number of cores that they used just before. With OMP_NUM_THREADS=1 a busy machine
changes less. With --json, the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.busy import read_other_load
from benchmarks.data import write_jsonl
from core.engine import Engine
from core.engine.worker import BackgroundTask
from core.spec.mix import Mix, Sampling

ROWS, QUICK_ROWS = 310_000, 93_000  # about 320 bytes each
ALONE_SECONDS = 5.0
NEW_TOKENS = 200
PROMPT = "The lamp is"


def count_tokens(engine: Engine, is_over: Callable[[], bool]) -> tuple[int, float]:
    """Generates until something is over; returns the tokens, and the seconds that they took."""
    tokens, started = 0, time.perf_counter()
    sampling = Sampling(max_new_tokens=NEW_TOKENS, temperature=1.0)
    while not is_over():
        for _ in engine.chat.stream(PROMPT, [Mix()], sampling, chat=False):
            tokens += 1
            if is_over():
                break
    return tokens, time.perf_counter() - started


def measure_alone(engine: Engine, path: Path) -> dict[str, float]:
    """Tokens a second without an import."""
    end = time.perf_counter() + ALONE_SECONDS
    tokens, seconds = count_tokens(engine, lambda: time.perf_counter() > end)
    return {"tokens_per_second": tokens / seconds}


def measure_thread(engine: Engine, path: Path) -> dict[str, float]:
    """Tokens a second beside an import on a thread of this process."""
    task = BackgroundTask(lambda task: _import(engine, path))
    tokens, seconds = count_tokens(engine, lambda: not task.is_alive)
    return {"tokens_per_second": tokens / seconds, "import_seconds": seconds}


def _import(engine: Engine, path: Path) -> None:
    engine.datasets.import_files([path], "Thread")


def measure_process(engine: Engine, path: Path) -> dict[str, float]:
    """Tokens a second beside an import as the page starts it."""
    job = engine.imports.start([path], "Process")
    tokens, seconds = count_tokens(engine, lambda: engine.imports.status(job).has_ended)
    status = engine.imports.status(job)
    assert status.state == "done", status.problem
    return {"tokens_per_second": tokens / seconds, "import_seconds": seconds}


WAYS = {"alone": measure_alone, "thread": measure_thread, "process": measure_process}


def run(folder: Path, rows: int, turns: int) -> dict[str, Any]:
    """Measures all ways in turns, and prints each figure."""
    path = write_jsonl(folder / "rows.jsonl", rows)
    figures: dict[str, Any] = {"mb": round(path.stat().st_size / 1e6), "turns": turns}
    found: dict[str, list[float]] = {}
    loads = []
    with Engine(folder / "workspace", "embedded", "none", "cpu") as engine:
        engine.bases.current(wait=True)
        measure_alone(engine, path)  # warms up
        for _ in range(turns):
            loads.append(read_other_load())
            for way, measure in WAYS.items():
                for name, value in measure(engine, path).items():
                    found.setdefault(f"{way}_{name}", []).append(value)
    for name, values in found.items():
        figures[name] = round(statistics.median(values), 2)
        print(f"{name}: {figures[name]} ({', '.join(f'{v:.1f}' for v in values)})", flush=True)
    for way in ("thread", "process"):
        ratio = figures["alone_tokens_per_second"] / figures[f"{way}_tokens_per_second"]
        figures[f"slower_beside_{way}"] = round(ratio, 2)
    figures["load"] = round(statistics.median(loads), 2)
    return figures


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description="Measure the speed of answers beside an import.")
    parser.add_argument("--quick", action="store_true", help="A smaller file, one turn.")
    parser.add_argument("--turns", type=int, default=0, help="Turns (1 with --quick, 3 without).")
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(
            Path(folder), QUICK_ROWS if args.quick else ROWS, args.turns or (1 if args.quick else 3)
        )
    print(f"slower beside a thread: {figures['slower_beside_thread']}, ", end="")
    print(
        f"beside a process: {figures['slower_beside_process']}; other programs used {figures['load']} cores"
    )
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
