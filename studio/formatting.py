"""How numbers, times and answers read on the page. Knows formats; knows nothing of where the numbers come from."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Mapping
from typing import Any

NONE = "–"


def format_number(value: Any, digits: int = 2) -> str:
    """A number for people: thousands separated, `digits` after the point, a dash where there is none."""
    if value is None or isinstance(value, (str, bool)) or not math.isfinite(value):
        return NONE
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def format_percent(value: Any) -> str:
    """A share as a percentage."""
    return (
        NONE
        if value is None or isinstance(value, str) or not math.isfinite(value)
        else f"{100 * value:.1f} %"
    )


def format_count(count: int) -> str:
    """A large count in three digits: 1.2 M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def format_bytes(count: float) -> str:
    """Bytes in the largest unit that leaves a number above one."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_duration(seconds: Any) -> str:
    """Seconds as people say them: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None or isinstance(seconds, str) or not math.isfinite(seconds):
        return NONE
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
    )


def format_time(unix_seconds: float) -> str:
    """A moment on this machine's clock."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(unix_seconds))


def format_base(name: str) -> str:
    """A base model as people call it: a Hub id as it is, a folder by its last part."""
    return (
        name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        if name.startswith(("/", ".", "~")) or "\\" in name
        else name
    )


def format_mix(named: Mapping[str, float]) -> str:
    """A mix as a formula: `base + 1.00 · Kitchen`."""
    parts = [f"{'+' if w >= 0 else '−'} {abs(w):.2f} · {name}" for name, w in named.items() if w]
    return " ".join(["base", *parts])


WORD = re.compile(r"\s+|[^\s]+")


def diff_words(reference: str, text: str) -> list[tuple[str, bool]]:
    """Cuts `text` into runs of words, each with whether it differs from `reference`.

    Args:
        reference: the base column's text.
        text: the text to show.

    Returns:
        (piece, differs) in order; the pieces joined give `text` again.
    """
    theirs, ours = WORD.findall(reference), WORD.findall(text)
    pieces: list[tuple[str, bool]] = []
    matcher = difflib.SequenceMatcher(
        None, [w for w in theirs if not w.isspace()], [w for w in ours if not w.isspace()], autojunk=False
    )
    same = {i for block in matcher.get_matching_blocks() for i in range(block.b, block.b + block.size)}
    position = 0
    for word in ours:
        differs = False
        if not word.isspace():
            differs = position not in same
            position += 1
        if pieces and (pieces[-1][1] == differs or word.isspace()):
            pieces[-1] = (pieces[-1][0] + word, pieces[-1][1])
        else:
            pieces.append((word, differs))
    return pieces


def escape_markdown(text: str) -> str:
    """Text for a Markdown file: every character that Markdown or HTML would read as a mark is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~&])", r"\\\1", text)
