"""The folder of a Space: the studio's source, its texts, and a seed. It appears whole or not at all.

README.md  app.py  requirements.txt  .gitattributes     `core.space.card`
launch.py  core/  studio/  assets/  LICENSE             of this studio, without tests
seed/                                                   `core.space.seed`
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import StudioError
from core.space import card
from core.space.card import SpaceSpec
from core.space.seed import write_seed
from core.space.selection import Selection
from core.space.zero_gpu import SECONDS_VARIABLE
from core.store.files import ensure_space, sync_file, sync_folder
from core.store.new_folders import make_folder
from core.store.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
FILES = ("launch.py", "LICENSE", "requirements.txt")
# Folder -> suffixes of the files that a running studio reads.
SOURCES = {
    "core": (".py",),
    "studio": (".py", ".js", ".css", ".svg", ".woff2", ".txt"),
    "assets/embedded-base": (".json", ".jinja", ".safetensors", ".md"),
    "assets/sample": (".txt", ".md", ".jsonl"),
    "assets/museum": (".txt", ".md", ".jsonl"),
}
GRADIO = re.compile(r"^gradio==(\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class BuiltSpace:
    """A folder that was built.

    Attributes:
        files, bytes: number and size of all of its files.
        notes: what its owner should know, one sentence each.
    """

    folder: Path
    base: str
    hardware: str
    adapters: tuple[str, ...]
    mixes: tuple[str, ...]
    files: int
    bytes: int
    notes: tuple[str, ...] = ()


def build_space(
    folder: Path, spec: SpaceSpec, base: str, selection: Selection, workspace: Workspace | None
) -> BuiltSpace:
    """Builds the folder of a Space.

    Args:
        folder: a folder that does not exist yet, or is empty.
        base: as `core.space.selection.choose_base` returns it.
        workspace: of the selection; None where nothing is selected.

    Raises:
        InvalidName: the folder is not empty. Busy: another process builds it.
        AdapterError, DamagedRecord: a chosen adapter is damaged.
        StudioError: this studio was installed without its source. DiskFull, StorageError
    """
    folder = folder.expanduser().resolve()
    sources = dict(list_sources())
    with make_folder(folder, "builds") as partial:
        _fill(partial, sources, spec, base, selection)
        if workspace is not None:
            write_seed(workspace, selection, partial / "seed")
        sizes = _flush(partial)
    return BuiltSpace(
        folder,
        base,
        spec.hardware,
        tuple(a.id for a in selection.adapters),
        tuple(m.id for m in selection.mixes),
        len(sizes),
        sum(sizes),
        (*selection.notes, *_list_notes(spec)),
    )


def list_sources() -> Iterator[tuple[str, Path]]:
    """Name in a copy of the studio -> file of this studio.

    Raises:
        StudioError: the studio was installed as a package, without launch.py.
    """
    for name in FILES:
        if not (ROOT / name).is_file():
            raise StudioError(
                f"A Space is built from the repository of the studio, and {name} is missing beside it.",
                "Clone the repository, and run `python -m core space build` there.",
            )
        yield name, ROOT / name
    yield "assets/__init__.py", ROOT / "assets" / "__init__.py"
    for place, suffixes in SOURCES.items():
        for path in sorted((ROOT / place).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            is_hidden = any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))
            if path.suffix in suffixes and path.is_file() and not is_hidden:
                yield name, path


def _fill(folder: Path, sources: dict[str, Path], spec: SpaceSpec, base: str, selection: Selection) -> None:
    ensure_space(folder, sum(path.stat().st_size for path in sources.values()))
    for name, path in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    match = GRADIO.search(pinned)
    if match is None:
        raise StudioError("requirements.txt does not pin gradio.", "Restore it from the repository.")
    texts = {
        "README.md": card.format_readme(spec, base, selection, match.group(1)),
        "app.py": card.format_app(base, spec.hardware),
        "requirements.txt": card.format_requirements(pinned, spec.hardware),
        ".gitattributes": card.ATTRIBUTES,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _flush(folder: Path) -> list[int]:
    """Flushes all files to the disk; returns their sizes."""
    sizes = []
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
            sizes.append(path.stat().st_size)
    sync_folder(folder)
    return sizes


def _list_notes(spec: SpaceSpec) -> list[str]:
    if spec.hardware != card.ZERO:
        return []
    return [
        "On ZeroGPU, answers and training use the GPU time of each visitor, and training runs in slices "
        f"(variable {SECONDS_VARIABLE}). It was not run on the Hub: docs/zerogpu.md says what was tested."
    ]
