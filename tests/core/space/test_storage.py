"""Where a Space keeps its workspace, and what its page says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.space.seed import write_seed
from core.space.selection import select
from core.space.storage import open_storage
from tests.core.space.conftest import Library


def test_a_mounted_volume_is_used_without_a_notice(library: Library, tmp_path: Path) -> None:
    write_seed(library.workspace, select(library.workspace, ["notes"], []), tmp_path / "seed")
    volume = tmp_path / "data"
    volume.mkdir()
    storage = open_storage(volume, tmp_path / "disk", tmp_path / "seed", is_mount=lambda _: True)
    assert storage.workspace == volume / "adapter-studio" and storage.notices == ()
    assert (storage.workspace / "adapters" / library.notes / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "disk").exists() and [p.name for p in volume.iterdir()] == ["adapter-studio"]


@pytest.mark.parametrize("exists", [False, True])
def test_without_a_volume_the_page_says_what_is_lost(exists: bool, tmp_path: Path) -> None:
    volume = tmp_path / "data"
    if exists:  # a plain folder on the disk of the Space is emptied, too
        volume.mkdir()
    storage = open_storage(volume, tmp_path / "disk", tmp_path / "seed")
    assert storage.workspace == tmp_path / "disk" and (tmp_path / "disk" / "adapters").is_dir()
    (notice,) = storage.notices
    assert notice.startswith("This Space has no persistent storage. Everything that is made here (datasets")
    assert f"mount a volume at {volume}" in notice


@pytest.mark.skipif(os.name == "nt", reason="modes of folders")
def test_a_volume_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tmp_path / "data"
    volume.mkdir()

    def refuse(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    storage = open_storage(volume, tmp_path / "disk", tmp_path / "seed", is_mount=lambda _: True)
    assert storage.workspace == tmp_path / "disk"
    assert f"The volume at {volume} cannot be written (Permission denied)." in storage.notices[0]


def test_a_damaged_seed_starts_an_empty_studio_that_says_so(library: Library, tmp_path: Path) -> None:
    write_seed(library.workspace, select(library.workspace, ["notes"], []), tmp_path / "seed")
    (tmp_path / "seed" / "adapters" / library.notes / "README.md").write_text("changed")
    volume = tmp_path / "data"
    volume.mkdir()
    storage = open_storage(volume, tmp_path / "disk", tmp_path / "seed", is_mount=lambda _: True)
    assert storage.notices[0].startswith(
        "The adapters and mixes that come with this Space could not be added"
    )
    assert "README.md of the seed" in storage.notices[0]
