"""Finds the files of an adapter: in a folder, in a zip file, or as one file.

Only the weights, the configuration, and a few texts that say which tool made them are read. All other files
of a folder, such as optimizer states, logs and checkpoints, are passed over and never opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from core.errors import AdapterError, NotFound
from core.store import archives
from core.store.json_text import parse_object

CONFIG = "adapter_config.json"
SAFETENSORS, PICKLED, MLX = "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"
GGUF = ".gguf"
EXTRACTED = "extracted"  # the folder of a zip file's members
START = "init"  # in the name of a folder with the adapter before its first step
TOKENIZER, TEMPLATE, CARD, RECORD = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "EXPERIMENT_METADATA.json",
)
TEXTS = (CONFIG, TOKENIZER, TEMPLATE, CARD, RECORD)
TEXT_LIMIT_BYTES = 8 << 20  # of each text
WEIGHTS_LIMIT_BYTES = 16 << 30
ENTRY_LIMIT = 5_000  # of a folder that is searched
DEPTH_LIMIT = 3  # folders in folders
# Weights of bases, optimizers and checkpoints, which are never those of an adapter.
OTHER_WEIGHTS = ("model", "pytorch_model", "consolidated", "optimizer", "scheduler", "random_states")
PASSED_FOLDERS = ("checkpoint-", "runs", "global_step", "logs", ".")
WHAT_TO_GIVE = (
    f"Give the folder with {CONFIG} and {SAFETENSORS} (or {PICKLED}, {MLX}), a zip file of it, an adapter as "
    "GGUF, or a Hub id."
)


@dataclass(frozen=True)
class AdapterFiles:
    """The files of one adapter.

    Attributes:
        source: the name to show.
        weights: the file with its tensors.
        config: its configuration; {} where it has none.
        tokenizer: the content of its tokenizer_config.json; {} without one.
        template: its own chat template, or "".
        card: its README.md, or "".
        record: the record of an adapter that this studio exported; {} for others.
        passed_over: names of files beside it that are not read.
        start: the weights of the same adapter before its first step, from a folder in its folder; or None.
    """

    source: str
    weights: Path
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    template: str = ""
    card: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    start: Path | None = None

    @property
    def start_name(self) -> str:
        """The name of the folder that `start` is in, or ""."""
        return self.start.parent.name if self.start else ""


@contextlib.contextmanager
def open_source(path: Path, scratch: Path) -> Iterator[AdapterFiles]:
    """Finds the adapter at a path.

    Args:
        scratch: a folder that a zip file is extracted into; the caller removes it.

    Raises:
        NotFound: there is nothing at the path. AdapterError: it holds no adapter, or several.
        DataError: the zip file breaks a rule of archives. StorageError: it could not be extracted.
    """
    try:
        path = Path(os.path.abspath(path.expanduser()))
        mode = os.stat(path).st_mode
    except (OSError, ValueError, RuntimeError) as e:
        raise NotFound(f"There is nothing at {str(path)!r}.", WHAT_TO_GIVE) from e
    if stat.S_ISDIR(mode):
        yield find_files(path, path.name)
    elif not stat.S_ISREG(mode):
        raise AdapterError(f"{path.name!r} is not a file or folder.", WHAT_TO_GIVE)
    elif path.suffix.lower() == ".zip":
        folder = scratch / EXTRACTED
        folder.mkdir(parents=True)
        archives.extract_some(path, folder, is_read)
        yield find_files(folder, path.stem)
    else:
        yield _read_folder(path.parent, path, path.name)


def is_read(name: str) -> bool:
    """Whether a file of this relative name can belong to an adapter."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts) or len(path.parts) > DEPTH_LIMIT + 1:
        return False
    return path.name in TEXTS or _is_weights(path.name)


def _is_weights(name: str) -> bool:
    if name in (SAFETENSORS, PICKLED, MLX):
        return True
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in (GGUF, ".safetensors") and not name.startswith(OTHER_WEIGHTS)


def find_files(folder: Path, source: str) -> AdapterFiles:
    """Finds the one adapter in a folder, or in the folders below it.

    Args:
        source: the name to show.

    Raises:
        AdapterError: there is none, or there are several at the same depth.
    """
    level = [folder]
    for _ in range(DEPTH_LIMIT):
        found = [(f, w) for f in level if (w := _choose_weights(f)) is not None]
        if len(found) > 1:
            names = ", ".join(sorted(repr(f.name) for f, _ in found)[:8])
            raise AdapterError(f"{source!r} holds several adapters: {names}.", "Name the folder of one.")
        if found:
            return _read_folder(*found[0], source)
        below = [child for f in level for child in _list_folder(f) if _is_folder(child)]
        level = [f for f in below if not f.name.startswith(PASSED_FOLDERS)] or below
    raise AdapterError(f"{source!r} holds no adapter that can be read.", WHAT_TO_GIVE)


def _list_folder(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name.

    Raises:
        AdapterError: there are too many, or they cannot be listed.
    """
    try:
        entries = []
        with os.scandir(folder) as scan:
            for entry in scan:
                entries.append(Path(entry.path))
                if len(entries) > ENTRY_LIMIT:
                    raise AdapterError(
                        f"The folder {folder.name!r} has more than {ENTRY_LIMIT:,} entries.",
                        "Name the folder of the adapter itself.",
                    )
    except OSError as e:
        raise AdapterError(
            f"The folder {folder.name!r} cannot be read: {e.strerror or e}.", "Check its permissions."
        ) from e
    return sorted(entries)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _choose_weights(folder: Path) -> Path | None:
    """The weights of the adapter in this very folder, or None.

    Raises:
        AdapterError: several files could be meant.
    """
    names = {p.name: p for p in _list_folder(folder) if p.is_file()}
    for name in (SAFETENSORS, PICKLED, MLX):
        if name in names:
            return names[name]
    others = [p for n, p in names.items() if _is_weights(n)]
    if len(others) > 1:
        shown = ", ".join(repr(p.name) for p in others[:8])
        raise AdapterError(f"{folder.name!r} has several files of weights: {shown}.", "Name one of them.")
    if CONFIG in names and not others:
        raise AdapterError(
            f"{folder.name!r} has {CONFIG} and no weights that can be read.",
            f"The weights are {SAFETENSORS}, {PICKLED} or {MLX}: copy or download them, too.",
        )
    return others[0] if others else None


def _read_folder(folder: Path, weights: Path, source: str) -> AdapterFiles:
    """Reads the texts beside the weights. A file that was named alone may have no other files."""
    try:
        size = weights.stat().st_size
    except OSError as e:
        raise AdapterError(f"{weights.name!r} cannot be read: {e.strerror or e}.", WHAT_TO_GIVE) from e
    if size > WEIGHTS_LIMIT_BYTES:
        raise AdapterError(
            f"{weights.name!r} has {size / (1 << 30):.1f} GiB; an adapter may have at most "
            f"{WEIGHTS_LIMIT_BYTES >> 30} GiB.",
            "It may be a whole model: import it as a base.",
        )
    if weights.suffix.lower() not in (GGUF, ".safetensors") and weights.name != PICKLED:
        raise AdapterError(f"{weights.name!r} is not a file of an adapter.", WHAT_TO_GIVE)
    tokenizer = _read_object(folder / TOKENIZER, is_needed=False)
    template = _read_text(folder / TEMPLATE) or tokenizer.get("chat_template")
    return AdapterFiles(
        source=source,
        weights=weights,
        config=_read_object(folder / CONFIG, is_needed=weights.suffix.lower() != GGUF),
        tokenizer=tokenizer,
        template=template if isinstance(template, str) else "",
        card=_read_text(folder / CARD),
        record=_read_object(folder / RECORD, is_needed=False),
        passed_over=tuple(
            p.name for p in _list_folder(folder) if p.name not in TEXTS and p.name != weights.name
        ),
        start=_find_start(folder),
    )


def _find_start(folder: Path) -> Path | None:
    """The weights of an adapter before its first step: tools save them in a folder such as "pissa_init"."""
    for child in _list_folder(folder):
        if START in child.name.lower() and _is_folder(child) and (child / SAFETENSORS).is_file():
            return child / SAFETENSORS
    return None


def _read_text(path: Path) -> str:
    """The text of a small file; "" where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > TEXT_LIMIT_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_object(path: Path, is_needed: bool) -> dict[str, Any]:
    """The JSON object of a small file; {} where there is none.

    Raises:
        AdapterError: it is needed, and it is too large, not readable or not a JSON object.
    """
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > TEXT_LIMIT_BYTES:
            raise ValueError(f"it has more than {TEXT_LIMIT_BYTES >> 20} MiB")
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as e:
        if not is_needed:
            return {}
        raise AdapterError(
            f"{path.name} cannot be read: {e}.", "Copy it again from where the adapter was trained."
        ) from e
