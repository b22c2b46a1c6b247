"""Prompts of a suite, from pasted lines and from files.

    lines            one prompt per line; empty lines are skipped
    .txt .md         the same
    .csv .jsonl ...  one prompt per row, from the column named prompt, question, instruction or text,
                     else from the first column that has text

The limits below apply to pasted prompts and files together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from core.data.formats.readers import RawRow, read_files
from core.errors import DataError

PROMPT_LIMIT = 200
LENGTH_LIMIT = 20_000  # characters of one prompt
COLUMN_NAMES = ("prompt", "question", "instruction", "text")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def read_prompts(lines: str, paths: Sequence[Path | str] = ()) -> list[str]:
    """Reads the pasted prompts, then those of the files.

    Args:
        lines: pasted text, one prompt per line.
        paths: files of the formats that `readers` supports.

    Raises:
        DataError: there are too many prompts, a prompt is too long or has invalid characters, or a file has
            no prompt.
    """
    prompts: list[tuple[str, str, int]] = [
        (line.strip(), "", i) for i, line in enumerate(lines.split("\n"), 1) if line.strip()
    ]
    for path in paths:
        prompts += _read_file(Path(path))
    for prompt, file, line in prompts:
        subject, line_in_file = ("the prompt", line) if file else (f"Line {line} of the prompts", None)
        if len(prompt) > LENGTH_LIMIT:
            raise DataError(
                f"{subject} has {len(prompt):,} characters; a prompt may have at most {LENGTH_LIMIT:,}.",
                "Shorten it.",
                file=file,
                line=line_in_file,
            )
        if _UNWRITABLE.search(prompt):
            raise DataError(
                f"{subject} contains a character that is not valid text.",
                "Remove it, or save the file as UTF-8.",
                file=file,
                line=line_in_file,
            )
    if len(prompts) > PROMPT_LIMIT:
        raise DataError(
            f"A suite may have at most {PROMPT_LIMIT} prompts, got {len(prompts):,}.", "Remove some prompts."
        )
    return [prompt for prompt, _, _ in prompts]


def _read_file(path: Path) -> list[tuple[str, str, int]]:
    """Reads the prompts of one file, each with the file's name and its line."""
    rows = read_files([path])
    if path.suffix.lower() in (".txt", ".md"):
        return [
            (text.strip(), r.file, r.line + i)
            for r in rows
            for i, text in enumerate(r.values["text"].split("\n"))
            if text.strip()
        ]
    column = _find_prompt_column(rows)
    cells = [(r.values.get(column), r) for r in rows]
    prompts = [(cell.strip(), r.file, r.line) for cell, r in cells if isinstance(cell, str) and cell.strip()]
    if not prompts:
        raise DataError(
            f"the column {column!r} has no text." if column else "the file has no column of text.",
            "Name the column of the prompts `prompt`.",
            file=path.name,
        )
    return prompts


def _find_prompt_column(rows: list[RawRow]) -> str:
    """Finds the column of the prompts; empty if no column has text."""
    columns = list(
        dict.fromkeys(c for r in rows for c, v in r.values.items() if isinstance(v, str) and v.strip())
    )
    by_name = {c.strip().lower(): c for c in reversed(columns)}
    first = columns[0] if columns else ""
    return next((by_name[n] for n in COLUMN_NAMES if n in by_name), first)
