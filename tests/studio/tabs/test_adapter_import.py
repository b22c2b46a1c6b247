"""Importing an adapter on the page: drop files, answer findings, import, compare with the base."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from core.engine import Engine
from core.errors import AdapterError, InvalidName, NotFound, SpecError
from studio.tabs import adapter_import, library
from studio.tabs.adapter_import import Draft
from tests.core.importing.test_refusals import CONFIG, factors, put
from tests.studio.dropped import upload
from tests.studio.shown import actions, pressed, texts


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), "none", "cpu") as made:
        made.bases.current(wait=True)
        yield made


def test_dropped_files_become_an_adapter_of_the_library(engine: Engine) -> None:
    tensors = {**factors(), "base_model.model.lm_head.weight": torch.ones(384, 64)}
    files = [
        upload(save(tensors), "adapter_model.safetensors"),
        upload(json.dumps({**CONFIG, "peft_version": "0.19.0"}).encode(), "adapter_config.json"),
    ]
    draft, card, tools, _, proof_tools, _, cleared = adapter_import.examine_upload(engine, files, Draft())
    assert "trained weights of lm_head" in texts(card) and "needs a choice" in texts(card)
    assert (tools["visible"], proof_tools["visible"], cleared) == (False, False, None)
    with pytest.raises(AdapterError, match="was not imported"):
        adapter_import.add_adapter(engine, draft, "Style")
    repair, alone = actions(card)
    assert alone["repair"] == "use-alone"
    draft, card, tools, *_ = adapter_import.choose_repair(engine, draft, pressed(**repair))
    assert draft.repairs == ("drop-copies",) and tools["visible"] and "answered" in texts(card)
    undo = next(a for a in actions(card) if a["do"] == "undo")
    assert adapter_import.choose_repair(engine, draft, pressed(**undo))[0].repairs == ()
    with pytest.raises(InvalidName) as e:
        adapter_import.add_adapter(engine, draft, "a/b")
    assert e.value.field == "name"
    done, card, _, _, proof_tools, _ = adapter_import.add_adapter(engine, draft, "Style", "domain")
    assert engine.library.adapter(done.adapter).kind == "domain"
    assert "Style is in the library" in texts(card) and proof_tools["visible"]
    proof = adapter_import.compare(engine, done, "Where is the red lamp?")
    assert "nats a token on this line" in texts(proof)
    shelf = library.refresh(engine, "adapters", done.adapter)[0]
    assert "made with PEFT" in texts(shelf)
    assert "drop-copies" in texts(library.refresh(engine, "adapters", done.adapter)[2])


def test_a_named_folder_is_examined_and_errors_stand_at_the_field(engine: Engine, tmp_path: Path) -> None:
    draft, card, tools, name, *_ = adapter_import.examine_source(engine, str(put(tmp_path / "tone")), Draft())
    assert (draft.source, name, tools["visible"]) == (str(tmp_path / "tone"), "tone", True)
    assert "It can be imported as it is shown here" in texts(card)
    for source, kind in (("", SpecError), (str(tmp_path / "gone"), NotFound)):
        with pytest.raises(kind) as e:
            adapter_import.examine_source(engine, source, Draft())
        assert e.value.field == "source"
    with pytest.raises(NotFound):
        adapter_import.add_adapter(engine, Draft(), "x")
    with pytest.raises(NotFound):
        adapter_import.compare(engine, Draft(), "x")


def test_a_path_outside_the_uploads_is_not_taken_for_an_upload(engine: Engine, tmp_path: Path) -> None:
    file = put(tmp_path / "tone") / "adapter_model.safetensors"
    with pytest.raises(Exception, match="did not arrive"):
        adapter_import.examine_upload(engine, [str(file)], Draft())
    assert file.exists()


def test_a_long_reading_shows_how_much_was_copied(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "tone")
    find = engine.adapter_imports._find

    def find_slowly(name: str, scratch: Path) -> Path:
        (scratch / "part").mkdir()
        (scratch / "part" / "weights.incomplete").write_bytes(b"x" * 3_000_000)
        time.sleep(0.3)
        return find(name, scratch)

    monkeypatch.setattr(engine.adapter_imports, "_find", find_slowly)
    monkeypatch.setattr(adapter_import, "POLL_SECONDS", 0.05)
    steps = list(adapter_import.follow_source(engine, str(source), Draft()))
    assert "tone is being read, for 0 s. 3 MB are copied so far." in texts(steps[2][1])
    assert all(not step[2]["visible"] for step in steps[:-1])
    assert "It can be imported" in texts(steps[-1][1])
    monkeypatch.setattr(engine.adapter_imports, "_find", lambda name, scratch: find("gone", scratch))
    shown = adapter_import.follow_source(engine, str(source), Draft())
    assert next(shown)[0] == Draft()  # an answer of the examination before is not left on the page
    with pytest.raises(NotFound):
        list(shown)
