"""Paths and contents of the sample data in `assets`: a domain, a task, and the files that measure them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.formats.readers import read_files
from core.errors import SpecError, StorageError

_ASSETS = Path(__file__).resolve().parents[2] / "assets"
# Name of a sample to its folder; all folders have one layout. The first is the default.
FOLDERS = {"station": _ASSETS / "sample", "museum": _ASSETS / "museum"}
FOLDER = FOLDERS["station"]


@dataclass(frozen=True)
class Samples:
    """One set of sample files.

    Attributes:
        folder: folder of the files; a folder of the same layout may hold another domain.
    """

    folder: Path = FOLDER

    def general_for(self, base: str) -> Samples:
        """The sample files whose general text suits a base.

        The station's is written in the invented language of the embedded base. Every other base gets real
        English, because forgetting shows in the language that a base knows.

        Args:
            base: name of the base, "embedded" or any other.
        """
        return Samples(FOLDERS["museum"]) if self.folder == FOLDER and base != "embedded" else self

    def replay_texts(self, base: str, rules: int) -> list[str]:
        """The general texts that a run replays where it names no replay dataset.

        Args:
            base: as in `general_for`.
            rules: the training rules of the run; runs of the first two replay the station's on every base.
        """
        return (self.general_for(base) if rules > 2 else self).texts("general")

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

    @property
    def paraphrases_file(self) -> Path:
        """The facts of the held-out questions, asked in other words; not every sample has this file."""
        return self.folder / "heldout_paraphrased.jsonl"

    def texts(self, name: str) -> list[str]:
        """Documents of "general" (replayed in training) or "general_heldout" (never trained on)."""
        return [row.values["text"] for row in read_files([self.folder / f"{name}.txt"])]

    def questions(self) -> list[dict[str, Any]]:
        """Held-out questions about the domain, as task rows."""
        return _read_task_rows(self.questions_file)

    def paraphrases(self) -> list[dict[str, Any]]:
        """The held-out questions in other words, as task rows; empty for a sample without them."""
        return _read_task_rows(self.paraphrases_file) if self.paraphrases_file.exists() else []

    def general_questions(self) -> list[dict[str, Any]]:
        """Held-out questions about general things, as task rows."""
        return _read_task_rows(self.folder / "general_questions.jsonl")

    def recall_probe(self) -> list[tuple[str, str]]:
        """Cloze sentences over the domain's facts, as (prompt, completion)."""
        return [(r["prompt"], r["completion"]) for r in read_lines(self.folder / "recall_probe.jsonl")]


def find_samples(name: str) -> Samples:
    """Finds the sample files of a name.

    Args:
        name: a key of FOLDERS.

    Raises:
        SpecError: no sample has this name.
    """
    if name not in FOLDERS:
        raise SpecError(f"Sample must be one of {', '.join(FOLDERS)}, got {name!r}.", "Choose one of these.")
    return Samples(FOLDERS[name])


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
