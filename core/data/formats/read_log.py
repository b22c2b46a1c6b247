"""What a reading of files says beside its rows: notes, and files that were skipped."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.errors import DataError

NOTE_LIMIT = 20  # notes about single files
SKIPPED_LIMIT = 1000  # skipped files that are listed


@dataclass
class ReadLog:
    """Notes and skipped files, in the order of the files.

    Attributes:
        notes: sentences for the user, each about a file.
        skipped: name ("file") and "reason" of each file that was not read.
        first_problem: the error of the first file that was skipped, or None.
        more: notes that are not in `notes`.
    """

    notes: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    first_problem: DataError | None = None
    more: int = 0

    def say(self, sentence: str) -> None:
        """Adds a sentence about a file, once; an empty one is not added."""
        if not sentence or sentence in self.notes:
            return
        if len(self.notes) < NOTE_LIMIT:
            self.notes.append(sentence)
        else:
            self.more += 1

    def skip(self, file: str, problem: DataError) -> None:
        """Adds a file that cannot be read, beside others that can."""
        self.first_problem = self.first_problem or problem
        if len(self.skipped) < SKIPPED_LIMIT:
            what = problem.what.removeprefix(file).lstrip(",: ")
            self.skipped.append({"file": file, "reason": f"{what} {problem.fix}".strip()})

    def list_notes(self) -> list[str]:
        """The notes, and how many more there were."""
        return [*self.notes, *([f"{self.more:,} more notes about files are not shown."] if self.more else [])]
