"""The sample data that ships with the studio, and where each file is.

Knows assets/sample. Knows nothing of what is done with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import StorageError

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "sample"
GENERAL = FOLDER / "general.txt"
GENERAL_HELDOUT = FOLDER / "general_heldout.txt"
GENERAL_QUESTIONS = FOLDER / "general_questions.jsonl"
QUESTIONS = FOLDER / "heldout_questions.jsonl"
RECALL = FOLDER / "recall_probe.jsonl"
TASK = FOLDER / "task.jsonl"


def domain_files() -> list[Path]:
    """The domain corpus: plain text and Markdown."""
    return sorted(p for p in (FOLDER / "domain").iterdir() if p.suffix in (".txt", ".md"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of one of our own JSONL files."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as e:
        raise StorageError(f"The sample file {path.name} cannot be read: {e}.", "Restore the assets folder from the repository.") from e


def questions(path: Path) -> list[dict[str, Any]]:
    """Question and answer lines as task rows."""
    return [{"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]} for r in read_lines(path)]
