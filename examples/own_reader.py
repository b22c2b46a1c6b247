"""Imports data in a format of your own, here a table of an SQLite database, and shows the trained tokens.

    python -m examples.own_reader [WORKSPACE]

A reader turns the foreign file into rows. A task row has a question and an answer, or a list of messages; a
domain row has a text. Rows written as JSON Lines are imported like any other file, with all checks.
"""

import json
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.engine import Engine


def write_tickets(path: Path) -> None:
    """Makes a small database to read, with one ticket that was never answered."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE tickets (subject TEXT, reply TEXT)")
        rows = [(f"Where is tool {i}?", f"In drawer {i % 7}.") for i in range(40)]
        db.executemany("INSERT INTO tickets VALUES (?, ?)", [*rows, ("Is the office open?", None)])


def read_tickets(path: Path) -> Iterator[dict[str, str]]:
    """The answered tickets as task rows."""
    with sqlite3.connect(path) as db:
        for subject, reply in db.execute("SELECT subject, reply FROM tickets WHERE reply IS NOT NULL"):
            yield {"question": subject, "answer": reply}


def main(workspace: str) -> None:
    with Engine(workspace) as engine, tempfile.TemporaryDirectory() as folder:
        database, rows = Path(folder, "tickets.db"), Path(folder, "tickets.jsonl")
        write_tickets(database)
        rows.write_text("".join(json.dumps(row) + "\n" for row in read_tickets(database)), encoding="utf-8")
        dataset = engine.datasets.import_files([rows], "Tickets", "task")
        print(f"{dataset.rows} rows, {dataset.splits}")
        tokens = engine.datasets.example_tokens(dataset.id)
        print("".join(f"[{t.text}]" if t.trained else t.text for t in tokens))  # [trained]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
