"""The terminal's judge: a person judges over standard input or by key, a mix judges on a base."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine
from core.spec.judge import CRITERIA
from core.store.judgements import read_votes
from tests.conftest import build_tiny_llama
from tests.core.engine.test_promotions import engine, measure  # noqa: F401 (the fixture)


def call(engine: Engine, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, Any]:  # noqa: F811
    code = main(["experiment", *words, "--workspace", str(engine.workspace.root), "--json"])
    out = capsys.readouterr().out
    return code, out, json.loads(out.splitlines()[-1])


def test_a_person_judges_over_standard_input_or_by_key(
    engine: Engine,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = measure(engine, "mine-0001", answer="In \x1b[31mroom 1.").id
    monkeypatch.setattr("sys.stdin", io.StringIO("g\nwhat\np\ns\nq\ng\n"))
    code, out, value = call(engine, capsys, "vote", key)
    assert code == 0 and (value["votes"], value["needed"]) == (2, 30)
    assert out.count("Question: Where is lamp") == 5 and "mine" not in out and "\x1b" not in out
    assert sorted(read_votes(engine.workspace, key, CRITERIA).values()) == ["good", "poor", "skip"]
    assert call(engine, capsys, "vote", key, "--answer", value["next"], "--poor")[2]["votes"] == 3
    code, _, value = call(engine, capsys, "vote", key, "--answer", "f" * 16)
    assert code == 1 and value["error"] == "An answer and a verdict belong together."
    assert call(engine, capsys, "vote", key, "--answer", "f" * 16, "--good")[2]["error"].startswith("The exp")


def test_a_judge_that_a_person_has_not_checked_is_not_counted(
    engine: Engine,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    key = measure(engine, "mine-0001").id
    base = str(build_tiny_llama(tmp_path / "base", max_position_embeddings=640))
    code, out, value = call(engine, capsys, "judge", key, "--limit", "3", "--base", base)
    assert code == 0 and value["read"] == 3 and value["shares"] == {} and value["counts"] is False
    assert (
        "Judge base not counted yet: 0 of 30 answers judged by both it and a person. It has read 3 of 60"
        in out
    )
    code, out, value = call(engine, capsys, "show", key)
    assert value["judges"][0]["kappa"]["count"] == 0 and "share of Good" not in out.splitlines()[0]
    refused = call(engine, capsys, "judge", key, "--address", "ftp://x", "--model", "m", "--base", base)
    assert refused[0] == 1 and "must begin with http" in refused[2]["error"]
