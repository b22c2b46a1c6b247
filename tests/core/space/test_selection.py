"""Which adapters, mixes and base a Space gets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import NotFound, SpecError
from core.space.selection import choose_base, is_portable, portable_name, select
from core.store import adapters
from core.store.known_bases import SMOLLM2
from core.store.workspace import Workspace
from tests.core.space.conftest import Library


def test_a_mix_brings_its_adapters_and_each_is_copied_once(library: Library) -> None:
    chosen = select(library.workspace, ["notes"], ["Both at half", library.mix])
    assert [a.id for a in chosen.adapters] == [library.notes, library.answers]
    assert [m.id for m in chosen.mixes] == [library.mix] and chosen.notes == ()


def test_an_adapter_brings_the_one_it_was_trained_on_top_of(library: Library) -> None:
    chosen = select(library.workspace, [library.answers], [])
    assert [a.id for a in chosen.adapters] == [library.answers, library.notes]
    assert chosen.notes == ("'notes' was added: 'answers' was trained on top of it.",)


def test_unknown_names_list_what_the_workspace_has(library: Library, empty: Workspace) -> None:
    with pytest.raises(NotFound, match=r"no adapter 'note'\. .* answers \(answers\), notes \(notes\)"):
        select(library.workspace, ["note"], [])
    with pytest.raises(NotFound, match=rf"no mix 'Both'\. .* It has: {library.mix} \(Both at half\)"):
        select(library.workspace, [], ["Both"])
    with pytest.raises(NotFound, match="It has: none"):
        select(empty, ["x"], [])


def test_a_mix_whose_adapter_was_deleted_is_refused(library: Library, tmp_path: Path) -> None:
    shutil.copytree(library.workspace.root, tmp_path / "w")
    workspace = Workspace(tmp_path / "w")
    shutil.rmtree(workspace.path("adapters", library.notes))
    with pytest.raises(SpecError, match="'Both at half' cannot be copied. The adapter 'notes' was deleted"):
        select(workspace, [], [library.mix])
    chosen = select(workspace, [library.answers], [])
    assert chosen.notes == ("'answers' was trained on top of an adapter that was deleted.",)


def test_the_base_is_that_of_the_adapters_unless_it_is_given(library: Library, tmp_path: Path) -> None:
    notes, answers = (adapters.load(library.workspace, a) for a in (library.notes, library.answers))
    assert choose_base("", [notes, answers]) == "embedded" == choose_base("", [])
    assert choose_base("HuggingFaceTB/SmolLM2-135M", []) == "HuggingFaceTB/SmolLM2-135M"
    with pytest.raises(SpecError, match="'notes' was trained on embedded, and .* is smollm2-135m"):
        choose_base("smollm2-135m", [notes])
    with pytest.raises(SpecError, match="different bases: 'notes' to embedded, 'answers' to a/b"):
        choose_base("", [notes, replace(answers, base="a/b")])
    with pytest.raises(SpecError, match="must be embedded, smollm2-135m or a Hub id, got"):
        choose_base(str(tmp_path), [])
    with pytest.raises(SpecError, match="Upload the model to the Hub"):
        choose_base("", [replace(notes, base=str(tmp_path))])
    assert choose_base("a/b", [replace(notes, base=str(tmp_path))]) == "a/b", "a folder may be a copy of a/b"


def test_a_converted_download_has_its_name_on_every_machine() -> None:
    folder = f"/w/bases/smollm2-135m-instruct-{SMOLLM2.sha256[:12]}"
    assert portable_name(folder) == "smollm2-135m" and portable_name("/w/bases/other") == "/w/bases/other"
    assert is_portable("smollm2-135m") and not is_portable("qwen2.5:0.5b") and not is_portable("/w/x.gguf")
