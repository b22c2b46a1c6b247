"""Formats numbers, sizes, times, statuses, mixes and differences between texts for the page."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from core.engine.mix_names import format_weight
from core.spec.mix import Mix

NONE = "–"
TILTS = {0.0: "", 1.0: " (deep)", -1.0: " (shallow)"}  # a link or the API may set any other tilt


def format_number(value: Any, digits: int = 2) -> str:
    """Formats a number with thousands separators; anything that is not a finite number becomes a dash.

    Args:
        digits: decimals of a float.
    """
    if value is None or isinstance(value, (str, bool)) or not math.isfinite(value):
        return NONE
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def format_percent(value: Any) -> str:
    """Formats a share (0 to 1) as a percentage."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return NONE
    return f"{100 * value:.1f} %"


def format_count(count: int) -> str:
    """Formats a large count with three significant digits: 1.24 M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun in the right form: "1 row", "1,240 rows", "2 entries".

    Args:
        one: the noun for one.
        many: the noun for any other number; by default the regular English plural.
    """
    return f"{number:,} {one if number == 1 else many or _pluralize(one)}"


def _pluralize(noun: str) -> str:
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search(r"(s|x|z|ch|sh)$", noun) else "s")


def end_sentence(sentence: str) -> str:
    """A sentence of the engine with a capital letter and an end."""
    return f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."


def format_bytes(count: float) -> str:
    """Formats bytes in the largest decimal unit that gives at least 1: 8.39 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_duration(seconds: Any) -> str:
    """Formats seconds in at most two units: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None or isinstance(seconds, str) or not math.isfinite(seconds):
        return NONE
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_time(unix_seconds: float) -> str:
    """Formats a Unix time in this machine's time zone: 04 Mar 2026, 17:20."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(unix_seconds))


def format_base(name: str) -> str:
    """Shortens the name of a base model: a path to its last part; a Hub id stays whole.

    The digest at the end of a base that was converted from a file is left out.
    """
    if name.startswith(("/", ".", "~")) or "\\" in name:
        folder, _, last = name.replace("\\", "/").rstrip("/").rpartition("/")
        return _DIGEST.sub("", last) if folder.endswith("/bases") else last
    return name


def format_split(split: str) -> str:
    """A split in words."""
    return {"all": "all rows", "val": "validation rows"}.get(split, f"{split} rows")


def format_status(run: Any) -> str:
    """The status of a run, with what it does not say about its end: not better than the base, for example."""
    return f"{run.status.value}, {run.outcome}" if run.outcome else str(run.status.value)


def format_mix(mix: Mix, names: Mapping[str, str]) -> str:
    """Formats a mix as a formula: `base + 1.00 · Kitchen + auto · Harbour (deep)`.

    Args:
        names: by adapter id; ids are shown for missing names.
    """
    parts = ["base"]
    for adapter, weight in mix.weights.items():
        tilt = mix.tilt.get(adapter, 0.0)
        name = names.get(adapter, adapter) + TILTS.get(tilt, f" (@{tilt:g})")
        parts.append(f"{'−' if weight < 0 else '+'} {format_weight(mix, adapter)} · {name}")
    return " ".join(parts)


WORD = re.compile(r"\s+|[^\s]+")
_DIGEST = re.compile(r"-[0-9a-f]{12}$")  # of `core.store.converted_bases`


def diff_words(reference: str, text: str) -> list[tuple[str, bool]]:
    """Splits a text where it starts or stops differing from a reference, word by word.

    Returns:
        (piece, differs) in order; the pieces joined give `text` again.
    """
    reference_words, words = WORD.findall(reference), WORD.findall(text)
    pieces: list[tuple[str, bool]] = []
    matcher = difflib.SequenceMatcher(
        None,
        [w for w in reference_words if not w.isspace()],
        [w for w in words if not w.isspace()],
        autojunk=False,
    )
    same = {i for block in matcher.get_matching_blocks() for i in range(block.b, block.b + block.size)}
    position = 0
    for word in words:
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
    """Escapes every character that Markdown or HTML would treat as markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~&])", r"\\\1", text)
