"""Artefacts are fetched whole and verified, or not at all: folders, zip files, rclone, the Hub."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from pathlib import Path

import pytest

from core.errors import AdapterError, DataError, InvalidName, NotFound
from core.store import artefacts
from core.store.artefacts import fetch, verify

CONTENT = {"adapter_model.safetensors": b"weights" * 100, "ollama/x/Modelfile": b"FROM x\n"}


def write_artefact(folder: Path, separator: str = "  ") -> Path:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    lines = [f"{hashlib.sha256(c).hexdigest()}{separator}{n}\n" for n, c in CONTENT.items()]
    (folder / "checksums.txt").write_text("".join(lines))
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files.pop("checksums.txt")
    return files


@pytest.mark.parametrize("separator", ["  ", " *"])
def test_a_folder_is_copied_with_what_its_list_names(tmp_path, separator):
    source = write_artefact(tmp_path / "source", separator)
    (source / "notes.txt").write_text("not in the list")
    found = fetch(str(source), tmp_path / "out" / "here")
    assert read_all(tmp_path / "out" / "here") == CONTENT and sorted(found.files) == sorted(CONTENT)
    assert verify(source).unlisted == ("notes.txt",)


@pytest.mark.parametrize("wrapped", ["", "adapter/"])
def test_a_zip_is_read_with_or_without_a_folder_around(tmp_path, wrapped):
    source = write_artefact(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for file in source.rglob("*"):
            if file.is_file():
                z.write(file, wrapped + file.relative_to(source).as_posix())
    fetch(str(tmp_path / "a.zip"), tmp_path / "out")
    assert read_all(tmp_path / "out") == CONTENT


def change(folder: Path) -> None:
    (folder / "ollama/x/Modelfile").write_bytes(b"FROM y\n")


def remove(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def point_outside(folder: Path) -> None:
    text = (folder / "checksums.txt").read_text()
    (folder / "checksums.txt").write_text(text.replace("ollama/x/Modelfile", "../Modelfile"))


def blur(folder: Path) -> None:
    (folder / "checksums.txt").write_text("something else\n")


def forget(folder: Path) -> None:
    (folder / "checksums.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change, "ollama/x/Modelfile has the sha256"),
        (remove, "adapter_model.safetensors is missing"),
        (point_outside, "Line 2 of checksums.txt"),
        (blur, "Line 1 of checksums.txt"),
        (forget, "has no checksums.txt"),
    ],
)
def test_damage_is_named_and_leaves_nothing(tmp_path, damage, said):
    source = write_artefact(tmp_path / "source")
    damage(source)
    with pytest.raises(AdapterError, match=said):
        fetch(str(source), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_target_that_exists_is_never_replaced(tmp_path):
    write_artefact(tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidName):
        fetch(str(tmp_path / "source"), tmp_path / "out")


def test_other_texts_are_not_sources(tmp_path):
    for text in ("", "nowhere", "/not/there", "C:\\adapters"):
        with pytest.raises((NotFound, AdapterError)):
            fetch(text, tmp_path / "out")
    (tmp_path / "a.txt").write_text("not a zip")
    with pytest.raises(DataError):
        fetch(str(tmp_path / "a.txt"), tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for rclone is a shell script")
def test_a_remote_is_copied_by_rclone_and_its_error_is_said(tmp_path, monkeypatch):
    source = write_artefact(tmp_path / "source")
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "rclone"
    script.write_text(
        '#!/bin/sh\n[ "$1 $4" = "copy --" ] || exit 9\n'
        'case "$5" in good:*) cp -r "$SOURCE"/. "$6" ;; *) echo "didn\'t find section" >&2; exit 1 ;; esac\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SOURCE", str(source))
    fetch("good:adapters/x", tmp_path / "out")
    assert read_all(tmp_path / "out") == CONTENT
    with pytest.raises(AdapterError, match="didn't find section"):
        fetch("bad:adapters/x", tmp_path / "other")
    monkeypatch.setattr(artefacts.shutil, "which", lambda name: None)
    with pytest.raises(AdapterError, match="not installed"):
        fetch("good:adapters/x", tmp_path / "third")
