"""Encoded splits, kept in their dataset's folder: a second run on the same data starts at once.

    <dataset>/tokens/<key>/ids.bin, mask.bin, starts.bin, cuts.bin   the arrays, see `token_table`
                           notes.json                                what the encoding said, and sha256 sums

The key is a digest of everything that the ids depend on: the content of the split, the tokenizer with its
chat template, and the settings. A folder appears whole, by a rename, and is used only if every sum verifies;
otherwise the split is encoded again. Whatever deletes the dataset deletes its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.tokens.token_table import TYPES, TableWriter, TokenTable
from core.store.files import sha256_of
from core.store.json_text import parse_object
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)

FOLDER = "tokens"
NOTES = "notes.json"
VERSION = 1  # of the files and of the encoding
SMALLEST = 1000  # rows of a split that is worth keeping; fewer are encoded in a moment
KEEP = 4  # encodings of one dataset, the newest ones


@dataclass(frozen=True)
class EncodedSplit:
    """A split as token ids.

    Attributes:
        notes: sentences for the user about what the encoding changed.
        special: texts in which a control token is written out.
    """

    table: TokenTable
    notes: tuple[str, ...]
    special: int


Encode = Callable[[TableWriter], tuple[list[str], int]]  # fills a table; returns (notes, special)


def digest_tokenizer(tokenizer: Any) -> str:
    """A digest of everything that the ids of a text depend on; "" where the tokenizer does not show it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return ""
    own = {
        "class": type(tokenizer).__name__,
        "template": tokenizer.chat_template,
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        "added": [
            getattr(tokenizer, name, None)
            for name in ("add_bos_token", "add_eos_token", "split_special_tokens", "eos_token_id")
        ],
    }
    sha = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode())
    sha.update(backend.to_str().encode())
    return sha.hexdigest()


def load_or_encode(
    workspace: Workspace, dataset_id: str, rows: int, parts: dict[str, Any], encode: Encode
) -> EncodedSplit:
    """The encoded split from the cache; without one, it is encoded, and kept if it has many rows.

    Args:
        rows: of the split.
        parts: what the ids depend on; an empty value of "tokenizer" means that nothing is kept.
        encode: appends every sequence to a writer; returns its notes, and the number of texts with control
            tokens. It is called again, without a folder, where the disk refuses.
    """
    if rows >= SMALLEST and parts.get("tokenizer"):
        key = hashlib.sha256(json.dumps({"version": VERSION, **parts}, sort_keys=True).encode()).hexdigest()[
            :32
        ]
        folder = workspace.path("datasets", dataset_id, FOLDER, key)
        if found := _load(folder):
            return found
        with contextlib.suppress(OSError):
            return _encode_to_folder(folder, encode)
        logger.info("the tokens of %s are not kept: the disk refused", dataset_id)
    writer = TableWriter()
    notes, special = encode(writer)
    return EncodedSplit(writer.finish(), tuple(notes), special)


def _load(folder: Path) -> EncodedSplit | None:
    """What is kept in a folder; None where there is nothing, or where it is damaged."""
    try:
        record = parse_object((folder / NOTES).read_bytes())
        sums, notes, special = record["sha256"], record["notes"], record["special"]
        if any(sha256_of(folder / f"{name}.bin") != sums[name] for name in TYPES):
            raise ValueError("a sum differs")
        if not isinstance(special, int) or not all(isinstance(note, str) for note in notes):
            raise ValueError("the notes are damaged")
        os.utime(folder)
        return EncodedSplit(TokenTable.open(folder), tuple(notes), special)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as e:
        logger.info("the tokens in %s are encoded again: %s", folder.name, e)
        return None


def _encode_to_folder(folder: Path, encode: Encode) -> EncodedSplit:
    """Encodes into a folder of its own, then renames it; readers never see a part of it.

    Raises:
        OSError: the disk refused.
    """
    folder.parent.mkdir(exist_ok=True)  # never the dataset's own folder, which may have been deleted
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        writer = TableWriter(partial)
        notes, special = encode(writer)
        writer.finish()
        for name in TYPES:
            with open(partial / f"{name}.bin", "rb+") as f:
                os.fsync(f.fileno())
        sums = {name: sha256_of(partial / f"{name}.bin") for name in TYPES}
        record = {"sha256": sums, "notes": notes, "special": special}
        (partial / NOTES).write_text(json.dumps(record), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # it was damaged
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(partial, folder)
        _remove_oldest(folder.parent)
        return EncodedSplit(TokenTable.open(folder), tuple(notes), special)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_oldest(parent: Path) -> None:
    """Leaves the newest encodings; partial folders that a killed process left are among the rest."""
    with contextlib.suppress(OSError):
        folders = sorted(parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in folders[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)
