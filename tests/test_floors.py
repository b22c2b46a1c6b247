"""The house keeps its floors: imports point down, and words stay in the rooms where they are at home."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRADES = ("core/train/", "core/evaluate/", "core/compose/")
# The floor of a module, by the longest prefix that matches.
FLOORS = {
    "core/errors": 0, "core/events": 0, "core/spec": 0, "core/workspace": 0, "core/progress": 0, "core/tables": 0,
    "core/archives": 0, "core/templates": 0,
    "core/data": 1, "core/hub": 1, "core/library": 1, "core/mixes": 1, "core/departures": 1, "core/samples": 1, "core/votes": 1, "core/grids": 1,
    "core/model": 2,
    "core/train": 3, "core/evaluate": 3, "core/compose": 3,
    "core/bases": 4, "core/composer": 4, "core/conductor": 4, "core/launcher": 4, "core/planner": 4, "core/engine": 4, "core/worker": 4,
    "core/bundles": 4, "core/collecting": 4, "core/answers": 4, "core/residence": 4,
    "core/demo": 5, "core/cli": 5, "core/cli_parts": 5, "core/cli_grids": 5, "core/cli_bundles": 5, "studio": 5,
    "core/__main__": 6, "launch": 6,
}
# A word, and the only places where it may stand (see ARCHITECTURE.md).
HOMES = {
    r"^\s*(import gradio|from gradio)|\bgr\.": ("studio/",),
    r"\bprint\(": ("core/cli", "launch.py"),
    r"^\s*(import|from) (threading|queue)\b": ("core/worker.py", "core/events.py"),
    r"\bos\.environ\b": ("launch.py", "core/cli.py", "core/launcher.py"),
    r"logging\.basicConfig": ("launch.py", "core/cli.py", "core/train/job.py"),
    r"\bsignal\.signal\b": ("launch.py", "core/cli.py"),
    r"\"(q_proj|c_attn|gate_proj)\"": ("core/model/families.py",),
    r"-100\b": ("core/data/batches.py",),
}


def modules() -> list[Path]:
    return [p for folder in ("core", "studio") for p in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "launch.py"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


def floor_of(name: str) -> int | None:
    found = [prefix for prefix in FLOORS if name == prefix or name.startswith(prefix + "/")]
    return FLOORS[max(found, key=len)] if found else None


def imports_of(path: Path) -> set[str]:
    """Our own modules that a file imports at run time, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {id(n) for b in ast.walk(tree) if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test) for n in ast.walk(b)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for a in node.names:
                child = ROOT / node.module.replace(".", "/") / f"{a.name}.py"
                found.add(f"{node.module}.{a.name}" if child.exists() else node.module)
    return {f.replace(".", "/") for f in found if f.split(".")[0] in ("core", "studio", "launch")}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down_and_never_between_trades(path: Path) -> None:
    name = name_of(path)
    if name in ("core", "studio"):
        assert not imports_of(path), "a package's __init__ imports nothing"
        return
    here = floor_of(name)
    assert here is not None, f"{name} has no floor: give it one here and in ARCHITECTURE.md"
    for target in imports_of(path) - {"core", "studio"}:
        there = floor_of(target)
        assert there is not None and there <= here, f"{name} (floor {here}) imports {target} (floor {there})"
        if name.startswith(TRADES) and target.startswith(TRADES):
            assert name.split("/")[1] == target.split("/")[1], f"{name} imports sideways from {target}"
        if name.startswith("studio"):
            assert not target.startswith(("core/model", "core/train/train", "core/data/batches")), f"{name} reaches past the engine into {target}"


@pytest.mark.parametrize("word", HOMES)
def test_words_stay_at_home(word: str) -> None:
    strays = [
        f"{path.relative_to(ROOT)}:{i}"
        for path in modules()
        if not path.relative_to(ROOT).as_posix().startswith(HOMES[word])
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line.partition("  #")[0])
    ]
    assert not strays, f"{word} stands in {strays}; at home it is in {HOMES[word]}"


def test_torch_stays_out_of_the_page_and_of_floor_zero() -> None:
    for path in modules():
        name = name_of(path)
        if name.startswith("studio") or floor_of(name) == 0:
            assert not re.search(r"^\s*(import torch|from torch|import transformers|from transformers|from peft)", path.read_text(encoding="utf-8"), re.M), name


def test_the_engine_can_be_imported_without_torch_or_gradio() -> None:
    """A page is painted before the model libraries are loaded."""
    import subprocess
    import sys

    code = "import sys, core.engine, core.cli; print(sorted({'torch', 'transformers', 'peft', 'gradio', 'datasets'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.strip() == "[]"
