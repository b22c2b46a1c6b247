"""adapter_model.bin of old versions of peft: read in a process of its own, and rewritten as safetensors.

The file is a zip file with a pickle in it. `torch.load(weights_only=True)` builds tensors and containers
only, and the process has limits of memory and time, so that what it reads cannot reach this one.
"""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path
from typing import Any

from core.data.child_process import ChildProcess, Parent, limit_process, serve
from core.errors import AdapterError

SECONDS = 600
SPARE_BYTES = 24 << 30  # address space for torch and its libraries, which reserve far more than they use
COPIES = 3  # of the weights: the file, its tensors, and what is written
MEMBER_LIMIT = 100_000
FIX = "Load it with the peft that made it, and save it with safe_serialization=True."


def convert(path: Path, target: Path) -> None:
    """Rewrites a pickled file of weights as a safetensors file.

    Raises:
        AdapterError: it is damaged, has another form, or holds more than tensors.
    """
    _check_members(path)
    process = ChildProcess(__name__, "import of the adapter")
    process.run({"path": str(path), "target": str(target)})


def _check_members(path: Path) -> None:
    """Checks that the file is a zip file whose members are stored as they are."""
    try:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
            total = sum(m.file_size for m in members)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise AdapterError(
            f"{path.name!r} is damaged, or was saved by a version of torch before 1.6.", FIX
        ) from e
    if len(members) > MEMBER_LIMIT or total > path.stat().st_size:
        raise AdapterError(f"{path.name!r} does not have the form that torch saves.", FIX)


def run() -> None:
    """The process: reads and writes."""
    serve(_work)


def _work(request: dict[str, Any], parent: Parent) -> None:
    path, target = Path(request["path"]), Path(request["target"])
    limit_process(SPARE_BYTES + COPIES * path.stat().st_size, SECONDS)
    torch = importlib.import_module("torch")
    save_file = importlib.import_module("safetensors.torch").save_file
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a damaged or hostile file makes the library raise
        text = str(e).split("\n")[0][:200]
        raise AdapterError(f"{path.name!r} cannot be read as weights ({text}).", FIX) from e
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise AdapterError(f"{path.name!r} holds more than tensors and their names.", FIX)
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, target)
