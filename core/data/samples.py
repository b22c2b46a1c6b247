"""Paths and contents of the sample data in `assets/sample`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.readers import read_files
from core.errors import StorageError

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "sample"


@dataclass(frozen=True)
class Samples:
    """One set of sample files.

    Attributes:
        folder: folder of the files; a folder of the same layout may hold another domain.
    """

    folder: Path = FOLDER

    @property
    def domain(self) -> list[Path]:
        """The domain corpus: plain text and Markdown."""
        return sorted(p for p in (self.folder / "domain").iterdir() if p.suffix in (".txt", ".md"))

    @property
    def task(self) -> Path:
        """Question and answer pairs about general things."""
        return self.folder / "task.jsonl"

    @property
    def questions_file(self) -> Path:
        """Held-out questions about the domain."""
        return self.folder / "heldout_questions.jsonl"

    def texts(self, name: str) -> list[str]:
        """Documents of "general" (replayed in training) or "general_heldout" (never trained on)."""
        return [row.values["text"] for row in read_files([self.folder / f"{name}.txt"])]

    def questions(self) -> list[dict[str, Any]]:
        """Held-out questions about the domain, as task rows."""
        return _read_task_rows(self.questions_file)

    def general_questions(self) -> list[dict[str, Any]]:
        """Held-out questions about general things, as task rows."""
        return _read_task_rows(self.folder / "general_questions.jsonl")

    def recall_probe(self) -> list[tuple[str, str]]:
        """Cloze sentences over the domain's facts, as (prompt, completion)."""
        return [(r["prompt"], r["completion"]) for r in read_lines(self.folder / "recall_probe.jsonl")]


def _read_task_rows(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": r["question"]},
                {"role": "assistant", "content": r["answer"]},
            ]
        }
        for r in read_lines(path)
    ]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a JSONL file that ships with the studio.

    Raises:
        StorageError: the file is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as e:
        raise StorageError(
            f"The sample file {path.name} cannot be read: {e}.",
            "Restore the assets folder from the repository.",
        ) from e
