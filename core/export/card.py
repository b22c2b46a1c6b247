"""The certificate in the files that leave: a table in README.md, and certificate.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.store.exports import Export, ExportedFile
from core.store.files import atomic_write, sha256_of, write_json
from core.store.model_card import escape_markdown

CARD, CERTIFICATE, CHECKSUMS = "README.md", "certificate.json", "checksums.txt"
BEGIN, END = "<!-- parity certificate -->", "<!-- end of the parity certificate -->"
SECTION = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + "\n?", re.DOTALL)
CELL_LIMIT = 600  # characters
MARKS = {"passed": "✅ passed", "failed": "❌ FAILED", "not checked": "not checked"}


def add_certificate(
    folder: Path, files: Sequence[ExportedFile], certificate: Mapping[str, Any], export: Export
) -> list[ExportedFile]:
    """Writes the certificate into an export, in place of an earlier one.

    Args:
        folder: with the files of the export.
        files: as they are recorded.
        certificate: a `core.export.certificate.Certificate` as JSON.

    Returns:
        the files as they are now.

    Raises:
        StorageError, DiskFull
    """
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.exists() else f"# {escape_markdown(export.name)}\n"
    weights = [file for file in files if file.name not in (CARD, CERTIFICATE, CHECKSUMS)]
    section = format_certificate(certificate, weights)
    text = SECTION.sub("", text).rstrip() + f"\n\n{section}"
    with atomic_write(card, "w") as file:
        file.write(text)
    write_json(folder / CERTIFICATE, {**certificate, "sha256": {f.name: f.sha256 for f in weights}})
    known = {file.name: file for file in files}
    changed = [CARD, CERTIFICATE]
    if (folder / CHECKSUMS).exists():
        lines = [f"{file.sha256}  {file.name}" for file in weights]
        lines += [f"{sha256_of(folder / name)}  {name}" for name in changed]
        with atomic_write(folder / CHECKSUMS, "w") as file:
            file.write("\n".join(sorted(lines, key=lambda line: line.split("  ", 1)[1])) + "\n")
        changed.append(CHECKSUMS)
    for name in changed:
        path = folder / name
        known[name] = ExportedFile(name, path.stat().st_size, sha256_of(path))
    return sorted(known.values(), key=lambda f: f.name)


def format_certificate(certificate: Mapping[str, Any], files: Sequence[ExportedFile]) -> str:
    """The section of a card."""
    rows = [("Result", MARKS.get(certificate["status"], certificate["status"]))]
    if certificate["reason"]:
        rows.append(("Reason", certificate["reason"]))
    if certificate["positions"]:
        rows += list_figures(certificate)
    table = ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)]
    sums = ["| File | Bytes | sha256 |", "|---|---|---|"]
    sums += [f"| {_cell(f.name)} | {f.bytes:,} | `{f.sha256}` |" for f in files]
    lead = (
        "The studio and these files, reopened in the runtime below, predicted the next token at the same "
        "positions of the same held-out prompts with their answers."
    )
    parts = [BEGIN, "## Parity certificate", "", lead, "", *table, "", *sums, END, ""]
    return "\n".join(parts)


def list_figures(certificate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, as (name, value)."""
    limits = certificate["limits"]
    wanted = f"(at least {limits['agreement']:.0%})"
    kl = f"{certificate['kl']:.2g} nats a token"
    rows = [
        ("Runtime", certificate["runtime"]),
        ("Studio", certificate["studio"]),
        ("Compared", f"{certificate['prompts']} prompts, {certificate['positions']:,} tokens"),
        ("Same most likely token", f"{certificate['agreement']:.2%} {wanted}"),
        ("Greedy answers, equal from the start", f"{certificate['free_agreement']:.2%} of the tokens"),
        ("KL divergence", f"at least {kl}" if certificate["kl_is_bound"] else kl),
        (
            "Perplexity, studio and file",
            f"{certificate['studio_perplexity']:.4g} and {certificate['file_perplexity']:.4g}",
        ),
    ]
    if certificate["difference"] is not None:
        allowed = f" (at most {limits['difference']:.2g})" if limits["difference"] is not None else ""
        rows.append(("Largest difference of logits", f"{certificate['difference']:.2g}{allowed}"))
    for name, value in (
        ("Stop tokens", certificate["same_stops"]),
        ("Chat template", certificate["same_template"]),
    ):
        if value is not None:
            rows.append((name, "the studio's" if value else "not the studio's"))
    return rows


def _cell(text: str) -> str:
    return escape_markdown(text, CELL_LIMIT)
