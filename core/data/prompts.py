"""Prompts of a suite, from lines and from files.

Knows which column of a file is asked and how many prompts are too many. Knows nothing of tokens.

    lines            one prompt a line; empty lines are passed by
    .txt .md         the same
    .csv .jsonl ...  one prompt a row: the column that is named like one, else the first that holds text
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from core.data.readers import RawRow, read_files
from core.errors import DataError

PROMPT_LIMIT = 200
LENGTH_LIMIT = 20_000  # characters of one prompt
NAMES = ("prompt", "question", "instruction", "text")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def read_prompts(lines: str, paths: Sequence[Path | str] = ()) -> list[str]:
    """Pasted prompts, then those of files.

    Raises:
        DataError: too many, too long, none in a file, or characters that are no text.
    """
    found: list[tuple[str, str, int]] = [
        (line.strip(), "", i) for i, line in enumerate(lines.split("\n"), 1) if line.strip()
    ]
    for path in paths:
        found += _of_file(Path(path))
    for prompt, file, line in found:
        where, place = ("the prompt", line) if file else (f"Line {line} of the prompts", None)
        if len(prompt) > LENGTH_LIMIT:
            raise DataError(
                f"{where} has {len(prompt):,} characters.",
                f"A prompt has at most {LENGTH_LIMIT:,}.",
                file=file,
                line=place,
            )
        if _UNWRITABLE.search(prompt):
            raise DataError(
                f"{where} holds a character that is no text.",
                "Remove it, or save the file as UTF-8.",
                file=file,
                line=place,
            )
    if len(found) > PROMPT_LIMIT:
        raise DataError(
            f"There are {len(found):,} prompts.", f"A suite has at most {PROMPT_LIMIT}; leave some out."
        )
    return [prompt for prompt, _, _ in found]


def _of_file(path: Path) -> list[tuple[str, str, int]]:
    """The prompts of one file, each with the file's name and its line."""
    rows = read_files([path])
    if path.suffix.lower() in (".txt", ".md"):
        return [
            (text.strip(), r.file, r.line + i)
            for r in rows
            for i, text in enumerate(r.values["text"].split("\n"))
            if text.strip()
        ]
    column = _asked(rows)
    texts = [(r.values.get(column), r) for r in rows]
    found = [(text.strip(), r.file, r.line) for text, r in texts if isinstance(text, str) and text.strip()]
    if not found:
        raise DataError(
            f"the column {column!r} holds no text." if column else "it has no column of text.",
            "Give it a column `prompt`.",
            file=path.name,
        )
    return found


def _asked(rows: list[RawRow]) -> str:
    """The column that holds the prompts; empty if none holds text."""
    texts = list(
        dict.fromkeys(c for r in rows for c, v in r.values.items() if isinstance(v, str) and v.strip())
    )
    named = {c.strip().lower(): c for c in reversed(texts)}
    return next((named[n] for n in NAMES if n in named), texts[0] if texts else "")
