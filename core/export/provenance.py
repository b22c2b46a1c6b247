"""What an export says about itself: EXPERIMENT_METADATA.json and README.md, without paths of this machine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import StorageError
from core.export.sources import ExportSource
from core.spec.export import FORM_LABELS
from core.store.adapter_files import CARD, CHECKSUMS, METADATA
from core.store.files import atomic_write, read_json, sha256_of, write_json
from core.store.model_card import HUB_NAME, escape_markdown

FORMAT = 1
TEXT_LIMIT = 200  # characters of a text that a user typed
# Fields of an adapter's metadata that name files and folders of this machine.
PRIVATE = ("run", "id", "repaired")


def name_base(name: str) -> str:
    """The name of a base or of a source outside this machine: a Hub id, or the last part of a path."""
    return name if HUB_NAME.fullmatch(name) else Path(name).name or name


def compute_plan(source: ExportSource, *settings: object) -> str:
    """A digest of everything that the values of exported weights follow from.

    Args:
        settings: further values that the content depends on, such as the precision.
    """
    parts = [(p.adapter.sha256, p.weight, p.tilt) for p in source.parts]
    text = json.dumps([source.layout.fingerprint, parts, [str(s) for s in settings]])
    return hashlib.sha256(text.encode()).hexdigest()


def build_metadata(source: ExportSource, form: str, **export: Any) -> dict[str, Any]:
    """The content of EXPERIMENT_METADATA.json.

    An adapter that is exported alone keeps its own: dataset tag, split seed, hyperparameters, runtime and
    results. A mix names the adapters that it is made of, as a baked adapter does.

    Args:
        form: of the export.
        export: what else is said about it, such as its precision.
    """
    first = source.parts[0].adapter
    base = {**(first.metadata.get("base") or {}), "name": name_base(source.layout.name)}
    if source.is_plain:
        metadata = {k: v for k, v in first.metadata.items() if k not in PRIVATE}
        if isinstance(origin := metadata.get("imported"), dict) and "source" in origin:
            metadata["imported"] = {**origin, "source": name_base(str(origin["source"]))}
    else:
        metadata = {
            "kind": "mix",
            "mix": {
                "weights": {p.adapter.id: p.weight for p in source.parts},
                "tilt": {p.adapter.id: p.tilt for p in source.parts if p.tilt},
            },
            "baked_from": source.describe(),
            "learned_from": sorted(frozenset().union(*(p.adapter.training_data for p in source.parts))),
            "results": {},
        }
    return {
        **metadata,
        "format": FORMAT,
        "name": source.name,
        "base": base,
        "created": time.time(),
        "export": {"form": form, **export},
    }


def format_model_readme(source: ExportSource, form: str, lines: Sequence[str]) -> str:
    """The README.md of a merged model or of GGUF files.

    Args:
        form: of `ExportSpec`.
        lines: how to use it, in Markdown.
    """
    base = name_base(source.layout.name)
    front = ["---", f"base_model: {_quote(base)}", "tags: [lora, adapter-studio]"]
    if form == "merged":
        front.insert(1, "library_name: transformers")
    if form in ("gguf", "bundle"):
        front.append("library_name: gguf")
    text = [
        *front,
        "---",
        "",
        f"# {escape_markdown(source.name)}",
        "",
        f"{FORM_LABELS[form]}, exported from Adapter Studio.",
        "",
        f"- Base model: {escape_markdown(base)} (fingerprint `{source.layout.fingerprint[:16]}`)",
        *(
            f"- Adapter: {escape_markdown(p.adapter.name)}, weight {p.weight:g}"
            + (f", tilt {p.tilt:g}" if p.tilt else "")
            + f" (sha256 `{p.adapter.sha256[:16]}`)"
            + (f", trained on {escape_markdown(p.adapter.dataset_name)}" if p.adapter.dataset_name else "")
            for p in source.parts
        ),
        *_list_parents(source),
        "",
        *lines,
        "",
    ]
    return "\n".join(text)


def _list_parents(source: ExportSource) -> list[str]:
    """Adapters that a part was trained on top of, and that are not in the export."""
    ids = {p.adapter.id for p in source.parts}
    lines = []
    for part in source.parts:
        parent = part.adapter.metadata.get("stacked_on") or {}
        if parent.get("name") and parent.get("id") not in ids:
            lines.append(
                f"- {escape_markdown(part.adapter.name)} was trained on top of "
                f"{escape_markdown(parent['name'])}, which is not in this export. Export a mix of both to "
                "use it as it was trained."
            )
    return lines


def write_records(
    folder: Path, source: ExportSource, form: str, lines: Sequence[str] = (), **export: Any
) -> list[str]:
    """Writes README.md and EXPERIMENT_METADATA.json beside exported files; returns their names.

    Args:
        form: of `ExportSpec`.
        lines: how the files are used, in Markdown.
        export: what else the metadata say about the export, such as its precision.

    Raises:
        StorageError, DiskFull
    """
    metadata = build_metadata(source, form, **export)
    metadata["created"] = find_time(folder) or metadata["created"]
    write_json(folder / METADATA, metadata)
    with atomic_write(folder / CARD, "w") as f:
        f.write(format_model_readme(source, form, lines))
    return [METADATA, CARD]


def find_time(folder: Path) -> float | None:
    """When the export began, as an interrupted attempt has written it; None without one."""
    try:
        created = read_json(folder / METADATA).get("created")
    except (StorageError, AttributeError):
        return None
    return created if isinstance(created, float) else None


def write_all_checksums(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """Writes checksums.txt: the sha256 of every file, also in folders below; returns its name.

    Args:
        known: path below `folder`, with slashes -> sha256 of files that were hashed before.

    Raises:
        StorageError, DiskFull
    """
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    names = [n for n in paths if n != CHECKSUMS and not paths[n].name.startswith(".")]
    digests = {n: (known or {}).get(n) or sha256_of(paths[n]) for n in names}
    with atomic_write(folder / CHECKSUMS, "w") as f:
        f.writelines(f"{digest}  {name}\n" for name, digest in digests.items())
    return CHECKSUMS


def _quote(value: Any) -> str:
    return json.dumps(str(value)[:TEXT_LIMIT], ensure_ascii=True)
