"""A seed is planted once, whole, and verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.errors import StorageError
from core.space import seed
from core.space.seed import plant_seed, write_seed
from core.space.selection import select
from core.store import adapters, mixes
from core.store.files import sha256_of
from core.store.workspace import Workspace
from tests.core.space.conftest import Library


@pytest.fixture
def folder(library: Library, tmp_path: Path) -> Path:
    write_seed(library.workspace, select(library.workspace, [], [library.mix]), tmp_path / "seed")
    return tmp_path / "seed"


def test_every_file_of_the_chosen_items_is_copied_with_its_sha256(library: Library, folder: Path) -> None:
    record = json.loads((folder / "SEED.json").read_text())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(record["files"]) == names - {"SEED.json"} and record["format"] == 1
    assert len(names) == 2 * 5 + 1 + 1  # five files an adapter, the mix, the record
    weights = f"adapters/{library.notes}/adapter_model.safetensors"
    assert record["files"][weights] == sha256_of(library.workspace.root / weights)


def test_a_planted_seed_has_the_same_adapters_and_mixes(
    library: Library, folder: Path, empty: Workspace
) -> None:
    planted = plant_seed(folder, empty)
    assert set(planted.adapters) == {library.notes, library.answers} and planted.mixes == (library.mix,)
    assert mixes.load(empty, library.mix) == mixes.load(library.workspace, library.mix)
    for adapter in (library.notes, library.answers):
        assert adapters.load(empty, adapter).sha256 == adapters.load(library.workspace, adapter).sha256
        assert "have the sha256" in adapters.verify(empty, adapter)[0]


def test_a_deleted_item_does_not_return_but_a_new_seed_adds_items(
    library: Library, folder: Path, empty: Workspace
) -> None:
    plant_seed(folder, empty)
    shutil.rmtree(empty.path("adapters", library.answers))
    assert plant_seed(folder, empty) == seed.Planted()
    assert empty.ids("adapters") == [library.notes]
    shutil.rmtree(folder)
    write_seed(library.workspace, select(library.workspace, [library.answers], []), folder)
    assert plant_seed(folder, empty) == seed.Planted(adapters=(library.answers,))


def test_a_start_that_was_killed_is_continued(
    library: Library, folder: Path, empty: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(seed, "_plant_mix", fail)
        with pytest.raises(OSError, match="killed here"):
            plant_seed(folder, empty)
    assert len(empty.ids("adapters")) == 2 and not empty.seed_path.exists()
    assert plant_seed(folder, empty) == seed.Planted(mixes=(library.mix,))


def test_a_changed_or_missing_file_adds_nothing(library: Library, folder: Path, empty: Workspace) -> None:
    weights = folder / "adapters" / library.answers / "adapter_model.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    weights.write_bytes(pointer)
    with pytest.raises(
        StorageError, match=r"adapter_model\.safetensors of the seed is .* has changed .* \(git LFS\)"
    ):
        plant_seed(folder, empty)
    weights.unlink()
    with pytest.raises(StorageError, match="is missing or has changed"):
        plant_seed(folder, empty)
    assert empty.ids("adapters") == [] and empty.ids("mixes") == [] and not empty.seed_path.exists()


@pytest.mark.parametrize("name", ["adapters/../x", "../x", "datasets/a/b", "adapters/a/.b", "mixes/a.json/b"])
def test_names_outside_of_adapters_and_mixes_are_refused(folder: Path, empty: Workspace, name: str) -> None:
    (folder / "SEED.json").write_text(json.dumps({"format": 1, "files": {name: "0" * 64}}))
    with pytest.raises(StorageError, match="not a list of adapters and mixes"):
        plant_seed(folder, empty)


def test_a_mix_whose_name_is_taken_is_left_out_and_said(
    library: Library, folder: Path, empty: Workspace
) -> None:
    mixes.save(empty, "Both at half", {})
    planted = plant_seed(folder, empty)
    assert planted.skipped == ("The mix 'Both at half' was not added: another one has its name.",)
    assert len(planted.adapters) == 2 and len(empty.ids("mixes")) == 1


def test_without_a_seed_nothing_is_written(tmp_path: Path, empty: Workspace) -> None:
    assert plant_seed(tmp_path / "none", empty) == seed.Planted() and not empty.seed_path.exists()
