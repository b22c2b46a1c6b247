"""How exports are drawn: work, interruption, certificate, what to do, files, the question of a deletion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.engine import Engine
from core.engine.exports import ExportStatus
from core.export.card import list_figures
from core.export.certificate import Certificate, Limits
from studio.views import exports as views
from tests.studio.exported import FAILED, put_export
from tests.studio.shown import actions, texts

FILES = {"adapter_config.json": b"{}", "ollama/answers/Modelfile": b"FROM x"}


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    with Engine(tmp_path, load=False) as opened:
        yield opened


def find(tree: Any, tag: str) -> list[Any]:
    if not isinstance(tree, dict):
        return []
    inner = [found for kid in tree["kids"] for found in find(kid, tag)]
    return [tree, *inner] if tree["tag"] == tag else inner


def test_a_running_export_shows_its_share_its_text_and_stop(engine: Engine) -> None:
    export = put_export(engine)
    tree = views.render_export(export, ExportStatus(export.id, "Answers", "running", "Writing", 0.42))
    (bar,) = [n for n in find(tree, "div") if n.get("attrs", {}).get("role") == "progressbar"]
    assert bar["vars"] == {"share": "42.0%"} and "42 % · Writing" in texts(tree)
    assert actions(tree) == [{"do": "stop", "export": export.id}]


def test_an_interrupted_export_can_be_continued_or_deleted(engine: Engine) -> None:
    export = put_export(engine)
    tree = views.render_export(export)
    assert "interrupted" in texts(tree) and "Its files are not complete" in texts(tree)
    assert [a["do"] for a in actions(tree)] == ["resume", "ask"]
    failed = ExportStatus(export.id, "Answers", "failed", "Failed", problem="The disk is full. Free some.")
    tree = views.render_export(export, failed)
    assert "The disk is full. Free some." in texts(tree) and "failed" in texts(tree)


def test_a_certificate_that_passed_has_every_figure_with_its_meaning(engine: Engine) -> None:
    export = put_export(engine, files=FILES)
    tree = views.render_export(export)
    (badge,) = [n for n in find(tree, "span") if n.get("cls") == "chip good"]
    assert badge["kids"] == ["passed"]
    assert "100.0 % of 1,200 predicted tokens are equal" in texts(tree)
    figures = list_figures(export.certificate)
    assert len(figures) == 10 and {name for name, _ in figures} == set(views.MEANINGS)
    for name, value in figures:
        assert f"{name} {views.MEANINGS[name]}" in texts(tree) and value in texts(tree)
    assert "Where is the red lamp?" in texts(tree) and "2 of 6" in texts(tree)


@pytest.mark.parametrize(
    ("form", "settings", "certificate", "advice"),
    [
        ("gguf", {"quantization": "q4_0"}, FAILED, "Q4_0 rounds the weights. Export it again as Q8_0"),
        ("gguf", {"quantization": "f16"}, FAILED, "report it to the makers of the studio"),
        ("merged", {"precision": "bf16"}, FAILED, "BF16 rounds the weights"),
        ("peft", {}, FAILED, "report it to the makers of the studio"),
        # a file that could not even be opened is not a matter of rounding
        ("gguf", {"quantization": "q4_0"}, Certificate("failed", "It did not open."), "report it"),
    ],
)
def test_a_failed_certificate_says_why_and_what_to_do(
    engine: Engine, form: str, settings: dict[str, str], certificate: Certificate, advice: str
) -> None:
    export = put_export(engine, files=FILES, certificate=certificate, form=form, **settings)
    tree = views.render_export(export)
    (alert,) = [n for n in find(tree, "div") if n.get("cls") == "problem"]
    assert alert["attrs"]["role"] == "alert"
    assert certificate.reason in texts(alert) and advice in texts(alert)
    assert [n["kids"] for n in find(tree, "span") if n.get("cls") == "chip bad"] == [["FAILED"]]


def test_an_export_that_was_not_checked_says_why(engine: Engine) -> None:
    reason = "llama.cpp is not installed: `pip install xllamacpp`, and check the export again."
    unchecked = Certificate("not checked", reason, limits=Limits(0.0))
    tree = views.render_export(put_export(engine, files=FILES, certificate=unchecked))
    assert f"Not checked. {reason}" in texts(tree) and "Compared" not in texts(tree)
    assert [n["kids"] for n in find(tree, "span") if n.get("cls") == "chip"] == [["not checked"]]
    tree = views.render_export(put_export(engine, "other-0000", files=FILES, certificate=None))
    assert "Nothing has compared these files" in texts(tree)


def test_every_file_has_its_link_and_checksum_and_small_ones_a_zip(engine: Engine) -> None:
    export = put_export(engine, files=FILES)
    tree = views.render_export(export)
    links = [n["attrs"] for n in find(tree, "a")]
    place = f"gradio_api/studio/download/export/{export.id}"
    assert [link["href"] for link in links] == [
        f"{place}/adapter_config.json",
        f"{place}/ollama/answers/Modelfile",
        f"{place}.zip",
    ]
    assert links[1]["download"] == "Modelfile"
    assert all(f"{file.sha256}  {file.name}" in texts(tree) for file in export.files)
    large = replace(export, files=[replace(export.files[0], bytes=views.ZIP_BYTES + 1)])
    assert len(find(views.render_export(large), "a")) == 1


def test_a_deletion_is_confirmed_and_names_the_size(engine: Engine) -> None:
    tree = views.render_export(put_export(engine, files=FILES), asks=True)
    assert "with its files (8 B)?" in texts(tree) and "do not go to the trash" in texts(tree)
    assert [a["do"] for a in actions(tree)] == ["delete", "keep"]


def test_an_estimate_says_when_the_disk_has_too_little_space() -> None:
    estimate = SimpleNamespace(bytes=10**9, free_bytes=2 * 10**9, seconds=5.0)
    shown = views.render_estimate(estimate, 10**9, True)
    assert shown["cls"] == "problem" and "2 GB are needed and 1 GB are free" in texts(shown)
