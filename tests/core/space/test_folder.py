"""The folder of a Space: whole, valid for the Hub, and without what a running studio does not need."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import launch
from core.errors import InvalidName, SpecError, StudioError
from core.space import card, folder
from core.space.card import HARDWARE, SpaceSpec
from core.space.folder import BuiltSpace, build_space
from core.space.selection import Selection, select
from core.store.workspace import Workspace
from tests.core.space.conftest import Library

COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@pytest.fixture(scope="module")
def built(library: Library, tmp_path_factory: pytest.TempPathFactory) -> BuiltSpace:
    target = tmp_path_factory.mktemp("space") / "demo"
    target.mkdir()  # an empty folder is filled
    selection = select(library.workspace, [], [library.mix])
    return build_space(target, SpaceSpec("Notes & answers"), "embedded", selection, library.workspace)


def read_front(text: str) -> dict[str, Any]:
    value = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(value, dict)
    return value


def test_the_front_matter_is_what_the_hub_reads(built: BuiltSpace) -> None:
    front = read_front((built.folder / "README.md").read_text(encoding="utf-8"))
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["license"] == "apache-2.0"
    assert front["sdk_version"] == launch.read_pins(built.folder / "requirements.txt")["gradio"]
    assert front["python_version"] == "3.11" and front["title"] == "Notes & answers"
    assert front["colorFrom"] in COLOURS and front["colorTo"] in COLOURS and front["emoji"]
    assert len(front["short_description"]) <= 60 and front["suggested_hardware"] == "cpu-basic"
    text = (built.folder / "README.md").read_text(encoding="utf-8")
    assert "adapter **notes** (domain, rank 4)" in text and "mix **Both at half**" in text


def test_the_folder_holds_the_studio_and_no_tests(built: BuiltSpace, library: Library) -> None:
    names = {p.relative_to(built.folder).as_posix() for p in built.folder.rglob("*") if p.is_file()}
    assert {"app.py", "launch.py", "requirements.txt", ".gitattributes", "seed/SEED.json"} <= names
    assert {"core/engine/engine.py", "studio/components/guide.js", "studio/assets/studio.css"} <= names
    assert {"assets/embedded-base/model.safetensors", "assets/sample/task.jsonl"} <= names
    assert f"seed/adapters/{library.answers}/adapter_model.safetensors" in names
    assert not [n for n in names if n.startswith(("tests/", "docs/", "benchmarks/")) or "__pycache__" in n]
    assert not [n for n in names if n.endswith((".pyc", ".partial", "pretrain.py"))]
    assert built.files == len(names)
    assert built.bytes == sum((built.folder / n).stat().st_size for n in names)
    assert not [p for p in built.folder.parent.iterdir() if p != built.folder], "no draft and no lock is left"


def test_every_file_that_the_package_ships_is_in_the_folder(built: BuiltSpace) -> None:
    for place in ("core", "studio"):
        ours = {
            p.relative_to(folder.ROOT).as_posix()
            for p in (folder.ROOT / place).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".partial"
        }
        copied = {p.relative_to(built.folder).as_posix() for p in (built.folder / place).rglob("*")}
        assert ours <= copied, "a running studio may need it: add its suffix to SOURCES"


def test_a_folder_with_anything_in_it_is_refused(built: BuiltSpace, tmp_path: Path) -> None:
    target = tmp_path / "repo"
    (target / ".git").mkdir(parents=True)
    with pytest.raises(InvalidName, match="is not empty; nothing was changed"):
        build_space(target, SpaceSpec(), "embedded", Selection(), None)
    assert [p.name for p in tmp_path.iterdir()] == ["repo"] and [p.name for p in target.iterdir()] == [".git"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidName, match="is a file"):
        build_space(tmp_path / "file", SpaceSpec(), "embedded", Selection(), None)


def test_a_failure_leaves_nothing(library: Library, tmp_path: Path) -> None:
    shutil.copytree(library.workspace.root, tmp_path / "w")
    workspace = Workspace(tmp_path / "w")
    selection = select(workspace, ["notes"], [])
    weights = workspace.path("adapters", library.notes, "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(StudioError, match=r"adapter_model\.safetensors"):
        build_space(tmp_path / "space" / "demo", SpaceSpec(), "embedded", selection, workspace)
    assert list((tmp_path / "space").iterdir()) == []


def test_without_its_source_the_studio_cannot_build_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "ROOT", tmp_path)
    with pytest.raises(StudioError, match=r"launch\.py is missing .* Clone the repository"):
        build_space(tmp_path / "demo", SpaceSpec(), "embedded", Selection(), None)


def test_a_space_on_zerogpu_says_how_it_trains_and_what_was_not_run(tmp_path: Path) -> None:
    built = build_space(tmp_path / "zero", SpaceSpec(hardware="zero-a10g"), "embedded", Selection(), None)
    readme = (built.folder / "README.md").read_text(encoding="utf-8")
    front = read_front(readme)
    assert (front["suggested_hardware"], front["python_version"]) == ("zero-a10g", "3.10.13")
    assert "ADAPTER_STUDIO_SLICE_SECONDS" in readme and "not run on the Hub" in built.notes[-1]
    plain = card.format_readme(SpaceSpec(), "embedded", Selection(), "6.0")
    assert "ZeroGPU" not in plain and read_front(plain)["python_version"] == "3.11"


@pytest.mark.parametrize("hardware", HARDWARE)
def test_only_zerogpu_adds_its_package_before_torch(hardware: str) -> None:
    imports = [
        a.name
        for node in ast.parse(card.format_app("embedded", hardware)).body
        if isinstance(node, ast.Import)
        for a in node.names
    ]
    lines = card.format_requirements("gradio==1\n", hardware).splitlines()
    if hardware == "zero-a10g":
        assert imports == ["sys", "spaces", "launch"] and lines == ["gradio==1", "spaces==0.51.3"]
    else:
        assert imports == ["sys", "launch"] and lines == ["gradio==1"]


def test_the_hardware_has_the_names_of_the_hub() -> None:
    from huggingface_hub import SpaceHardware

    assert set(HARDWARE) <= {h.value for h in SpaceHardware}
    with pytest.raises(SpecError, match="hardware must be one of cpu-basic, .*, got 'a100'"):
        SpaceSpec(hardware="a100")


def test_a_base_of_the_hub_is_named_and_loaded_at_build_time() -> None:
    front = read_front(card.format_readme(SpaceSpec(), "a/b-1.5", Selection(), "6.0"))
    assert front["models"] == front["preload_from_hub"] == ["a/b-1.5"]
    assert "models" not in read_front(card.format_readme(SpaceSpec(), "smollm2-135m", Selection(), "6.0"))


@settings(deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_any_title_that_is_allowed_survives_the_front_matter(title: str) -> None:
    try:
        spec = SpaceSpec(title)
    except InvalidName:
        return
    text = card.format_readme(spec, "embedded", Selection(), "6.0")
    end = text.index("\n---\n", 4)
    assert yaml.safe_load(text[4:end])["title"] == title.strip()
