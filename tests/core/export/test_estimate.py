"""The estimate of an export is the size of what is written then, and refuses what cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import BaseModelError, SpecError
from core.export.base_layout import BaseLayout, describe_layout
from core.export.estimate import estimate
from core.export.forms import write_form
from core.spec.export import ExportSpec
from core.store.workspace import Workspace
from tests.core.export.makers import add_adapter, build_base


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, BaseLayout]:
    base = build_base(tmp_path_factory.mktemp("base"), "llama", hidden_size=256, vocab_size=4096)
    workspace, layout = Workspace(tmp_path_factory.mktemp("ws")), describe_layout(str(base))
    add_adapter(workspace, layout, "law", rank=32)
    add_adapter(workspace, layout, "chat", rank=32)
    return workspace, layout


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("peft", {}),
        ("merged", {}),
        ("merged", {"precision": "bf16"}),
        ("gguf", {"quantization": "q8_0"}),
        ("bundle", {"quantization": "f16"}),
        ("bundle", {"include_base": False}),
    ],
    ids=str,
)
def test_estimate_is_the_size_of_what_is_written(tmp_path, studio, form, options) -> None:
    workspace, layout = studio
    spec = ExportSpec(name="x", weights={"law": 1.0, "chat": 0.5}, form=form, **options)
    found = estimate(workspace, spec, layout.name)
    write_form(workspace, spec, layout.name, layout.fingerprint, layout.folder, tmp_path, lambda *step: None)
    size = sum(f.stat().st_size for f in Path(tmp_path).rglob("*") if f.is_file())
    assert size <= found.free_bytes <= 1.15 * size + 200_000
    assert 0 < found.seconds < 60
    assert found.text.startswith("The export takes about ") and " MB on the disk" in found.text


def test_estimate_refuses_what_cannot_be_written(tmp_path, studio, monkeypatch) -> None:
    workspace, layout = studio
    with pytest.raises(SpecError, match="at least one adapter"):
        estimate(workspace, ExportSpec(form="merged"), layout.name)
    monkeypatch.setattr("core.export.estimate.find_library", lambda: None)
    spec = ExportSpec(weights={"law": 1.0}, form="gguf", quantization="q4_k_m")
    with pytest.raises(BaseModelError, match="own quantizer"):
        estimate(workspace, spec, layout.name)
    other = describe_layout(str(build_base(tmp_path / "t5", "t5")))
    add_adapter(workspace, other, "t5")
    for form in ("gguf", "bundle"):
        with pytest.raises(BaseModelError, match="t5"):
            estimate(workspace, ExportSpec(weights={"t5": 1.0}, form=form), other.name)
    assert estimate(workspace, ExportSpec(weights={"t5": 1.0}, form="merged"), other.name).bytes > 0
