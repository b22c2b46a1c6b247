"""The house keeps its layers: imports point down, and words stay in the rooms where they are at home."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The layer of a package, by the longest prefix that matches. A package imports lower layers only.
LAYERS = {
    "core/errors": 0,
    "core/progress": 0,
    "core/spec": 1,
    "core/store": 2,
    "core/data": 3,
    "core/gguf": 3,
    "core/space": 3,
    "core/model": 4,
    "core/retrieve": 4,
    "core/train": 5,
    "core/evaluate": 5,
    "core/merge": 5,
    "core/importing": 5,
    "core/analyze": 6,
    "core/export": 6,
    "core/engine": 7,
    "core/facade": 8,
    "core/remote": 8,
    "core/server": 8,
    "core/cli": 9,
    "studio": 9,
    "core/__main__": 10,
    "launch": 10,
}
# A word, and the only places where it may stand (see ARCHITECTURE.md).
HOMES = {
    r"^\s*(import gradio|from gradio)|\bgr\.": ("studio/",),
    r"\bprint\(": ("core/cli/", "launch.py"),
    r"^\s*(import|from) (threading|queue)\b": ("core/engine/worker.py", "core/store/event_log.py"),
    r"\bos\.environ\b": ("launch.py", "core/cli/main.py", "core/train/launcher.py"),
    r"logging\.basicConfig": ("launch.py", "core/cli/main.py", "core/train/job.py"),
    r"\bsignal\.signal\b": ("core/train/signals.py",),
    r"\"(q_proj|c_attn|gate_proj)\"": ("core/model/families.py",),
    r"-100\b": ("core/data/tokens/encoding.py",),
}


def modules() -> list[Path]:
    return [p for folder in ("core", "studio") for p in sorted((ROOT / folder).rglob("*.py"))] + [
        ROOT / "launch.py"
    ]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


def layer_of(name: str) -> int | None:
    found = [prefix for prefix in LAYERS if name == prefix or name.startswith(prefix + "/")]
    return LAYERS[max(found, key=len)] if found else None


def imports_of(path: Path) -> set[str]:
    """Our own modules that a file imports at run time, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {
        id(n)
        for b in ast.walk(tree)
        if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test)
        for n in ast.walk(b)
    }
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


def package_of(name: str) -> str:
    return max((prefix for prefix in LAYERS if name == prefix or name.startswith(prefix + "/")), key=len)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down_and_never_sideways(path: Path) -> None:
    name = name_of(path)
    if name == "core/engine":
        assert imports_of(path) == {"core/engine/engine"}, "core.engine offers the Engine and nothing else"
        return
    if path.name == "__init__.py" and not name.startswith("studio"):
        assert not imports_of(path), "a package's __init__ imports nothing"
        return
    here = layer_of(name)
    assert here is not None, f"{name} has no layer: give it one here and in ARCHITECTURE.md"
    for target in imports_of(path) - {"core", "studio"}:
        there = layer_of(target)
        assert there is not None, f"{target} has no layer"
        if package_of(name) != package_of(target):
            assert there < here, f"{name} (layer {here}) imports {target} (layer {there})"
        if name.startswith("studio"):
            past = ("core/model", "core/train/train", "core/data/encoding")
            assert not target.startswith(past), f"{name} reaches past the engine into {target}"


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


def test_torch_stays_out_of_page_spec_and_store() -> None:
    for path in modules():
        name = name_of(path)
        if name.startswith(("studio", "core/spec", "core/store", "core/errors", "core/progress")):
            assert not re.search(
                r"^\s*(import torch|from torch|import transformers|from transformers|from peft)",
                path.read_text(encoding="utf-8"),
                re.M,
            ), name


def test_the_engine_can_be_imported_without_torch_or_gradio() -> None:
    """A page is painted before the model libraries are loaded."""
    import subprocess
    import sys

    libraries = ("torch", "transformers", "peft", "gradio", "datasets")
    code = f"import sys, core.engine, core.cli.main; print([m for m in {libraries} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert out.strip() == "[]"


def test_every_file_that_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:core|studio|tests)/[\w/.]*|launch\.py)`", text))
    assert len(names) > 40
    assert not [name for name in names if not (ROOT / name).exists()]


def test_every_package_of_the_tree_is_in_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = [p.name for p in (ROOT / "core").iterdir() if (p / "__init__.py").exists()]
    assert not [name for name in packages if not re.search(rf"^  {name}/", text, re.MULTILINE)]
    loose = {p.name for p in (ROOT / "core").glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "errors.py", "facade.py", "progress.py"}, (
        "a module belongs into a package"
    )
