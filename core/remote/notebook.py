"""A notebook that trains a run on Colab or Kaggle, and the one file that it needs there.

    notebook RUN ──> NAME.ipynb     cells: parameters, unpack, install, train, result
                └──> NAME.kit.zip   bundle.zip (`core.remote.pack`) and this studio's source with its pins

    (Colab, Kaggle)  NAME.kit.zip ──> NAME.result.zip, weights.json ──> bundle collect (here)

The first code cell has papermill's tag `parameters`. Packages that have the pinned versions already are not
installed again, so that the notebook also runs on a machine without a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InvalidName, SpecError
from core.remote.pack import pack
from core.space.folder import list_sources
from core.spec.training import RunStatus
from core.store import archives, runs
from core.store.base_models import HUB_ID
from core.store.bundles import Bundle
from core.store.files import atomic_write
from core.store.known_bases import KNOWN_BASES
from core.store.workspace import Workspace

EMBEDDED, EMBEDDED_FILES = "embedded", "assets/embedded-base/"
SUFFIX = ".ipynb"
STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NEEDED = ("core/", "assets/__init__", "assets/sample/", "assets/museum/", "requirements.txt", "LICENSE")
INSTALL = 'Install it: pip install "adapter-studio[notebook]"'

INTRODUCTION = """# Train {name}

1. Upload `{kit}` here: on Colab in the folder view or when a cell asks for it, on Kaggle as a dataset.
2. Choose a GPU, then run all cells. Run again after an interruption: the training resumes.
3. Download `{result}`, and add it to the studio: `python -m core bundle collect {result}`

`weights.json` logs the run while it trains: steps, losses, settings, versions, and the checksums at the end.
"""
PARAMETERS = """\
KIT = "{kit}"
RESULT = "{result}"
WEIGHTS = "weights.json"
BASE = {base!r}  # {about}
QUANTIZATION = ""  # nf4, int8 or none; "" is the setting of the bundle
FOLDER = "adapter-studio"  # the kit is unpacked here"""
UNPACK = """\
import glob, importlib.util, sys, zipfile
from pathlib import Path

def find_kit():
    on_kaggle = glob.glob(f"/kaggle/input/**/{KIT}", recursive=True)
    for path in (KIT, f"/content/{KIT}", f"/content/drive/MyDrive/{KIT}", *on_kaggle):
        if Path(path).is_file():
            return Path(path)
    if importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"):
        from google.colab import files
        files.upload()
    if not Path(KIT).is_file():
        raise FileNotFoundError(f"{KIT} is not here: upload it, or set KIT to its path.")
    return Path(KIT)

# Kaggle unpacks uploads: the folder of the kit then serves as it is.
unpacked = [Path(p).parent for p in glob.glob("/kaggle/input/**/bundle.zip", recursive=True)]
if unpacked and not Path(KIT).is_file():
    folder = unpacked[0]
else:
    folder = Path(FOLDER)
    with zipfile.ZipFile(find_kit()) as kit:
        kit.extractall(folder)
sys.path.insert(0, str(folder.resolve()))"""
INSTALL_CELL = """\
import importlib.metadata, subprocess
from packaging.requirements import Requirement

def is_installed(requirement):
    if requirement.marker and not requirement.marker.evaluate():
        return True
    try:
        return importlib.metadata.version(requirement.name) in requirement.specifier
    except importlib.metadata.PackageNotFoundError:
        return False

lines = (folder / "requirements.txt").read_text().splitlines()
pins = [line for line in lines if line and not line.startswith("#")]
missing = [pin for pin in pins if not is_installed(Requirement(pin))]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
display("Installed: " + (", ".join(missing) or "nothing, all versions are right"))"""
TRAIN = """\
from core.remote.weights_log import train_bundle

entry = train_bundle(folder / "bundle.zip", Path(RESULT), Path(WEIGHTS), BASE, QUANTIZATION, say=print)"""
RESULT_CELL = """\
display(entry["results"], f"sha256 of the weights: {entry['weights_sha256']}")
display(f"Download {Path(RESULT).resolve()}, then: python -m core bundle collect {RESULT}")
if importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"):
    from google.colab import files
    files.download(RESULT)"""


@dataclass(frozen=True)
class WrittenNotebook:
    """What was written.

    Attributes:
        notebook, kit: the files, beside each other.
        result: name of the file that the notebook writes.
        base: what BASE is set to; "" where the user has to name a copy of the base.
    """

    notebook: Path
    kit: Path
    result: str
    bundle: Bundle
    base: str


def write_notebook(workspace: Workspace, run_id: str, path: Path) -> WrittenNotebook:
    """Packs a run, and writes a notebook that trains it elsewhere.

    A run that has finished is packed as a new run with the same settings.

    Args:
        path: the notebook, whose name ends with .ipynb; the kit is written beside it.

    Raises:
        InvalidName: another name. SpecError: nbformat is not installed. Busy: the run is queued or training.
        StudioError: see `core.remote.pack`, or the studio was installed without its source.
    """
    if path.suffix != SUFFIX or not STEM.fullmatch(path.stem):
        raise InvalidName(
            f"The notebook's name must have letters, digits, dots or hyphens and end with {SUFFIX}, "
            f"got {path.name!r}.",
            "For example train.ipynb.",
        )
    try:
        import nbformat
    except ImportError as e:
        raise SpecError("nbformat is not installed, which writes notebooks.", INSTALL) from e
    run = runs.load(workspace, run_id)
    kit, result = path.with_name(f"{path.stem}.kit.zip"), f"{path.stem}.result.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with workspace.temporary_folder() as folder:
        packed = folder / "bundle.zip"
        is_done = run.status is RunStatus.DONE
        bundle = pack(workspace, run.spec if is_done else run_id, packed, run.base)
        sources = {
            name: file
            for name, file in list_sources()
            if name.startswith(NEEDED)
            or (bundle.base == EMBEDDED and name.startswith("assets/embedded-base/"))
        }
        archives.write(kit, {"bundle.zip": packed, **sources})
    base = _name_base(bundle.base)
    cells = _write_cells(nbformat.v4, bundle.spec.name, kit.name, result, base)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=_METADATA)
    nbformat.validate(notebook)
    with atomic_write(path, "w") as f:
        f.write(nbformat.writes(notebook) + "\n")
    return WrittenNotebook(path, kit, result, bundle, base)


_METADATA: dict[str, Any] = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
    "accelerator": "GPU",
}


def _name_base(base: str) -> str:
    """The name under which another machine finds a base; "" for a folder of this machine."""
    is_elsewhere = base == EMBEDDED or base in KNOWN_BASES or HUB_ID.fullmatch(base)
    return base if is_elsewhere and not Path(base).is_dir() else ""


def _write_cells(make: Any, name: str, kit: str, result: str, base: str) -> list[Any]:
    """The cells, by nbformat's module for a version of the format."""
    about = "Hub id or a folder here" if base else "set this: a Hub id or a folder here with the same weights"
    parameters = PARAMETERS.format(kit=kit, result=result, base=base, about=about)
    cells = [
        make.new_markdown_cell(INTRODUCTION.format(name=_clean(name), kit=kit, result=result)),
        make.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *[make.new_code_cell(source) for source in (UNPACK, INSTALL_CELL, TRAIN, RESULT_CELL)],
    ]
    for number, cell in enumerate(cells):  # random ids would change the file at every writing
        cell["id"] = f"cell-{number}"
    return cells


def _clean(name: str) -> str:
    """A display name without characters that mean something in Markdown."""
    return re.sub(r"[\\`*_{}\[\]<>()#!|$~]", " ", name).strip() or "an adapter"
