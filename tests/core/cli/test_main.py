"""The terminal: every verb, its JSON for programs, and errors with exit codes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.spec.mix import Mix


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    level = logging.getLogger("bitsandbytes").level
    yield
    logging.getLogger("bitsandbytes").setLevel(level)


@pytest.fixture
def terminal(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str) -> tuple[int, Any]:
        code = main([*args, "--workspace", str(tmp_path / "ws"), "--base", str(tiny_base), "--json"])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_the_terminal_imports_trains_answers_and_measures(terminal: Any, corpus: Path, pairs: Path) -> None:
    code, texts = terminal("data", "add", str(corpus), "--name", "Texts")
    assert code == 0 and texts["kind"] == "domain" and texts["splits"] == {"train": 34, "val": 7, "test": 7}
    _, labelled = terminal(
        "data",
        "add",
        str(pairs.parent / "pairs.jsonl"),
        "--name",
        "Pairs",
        "--role",
        "question=question",
        "--role",
        "answer=answer",
    )
    assert [d["id"] for d in terminal("data", "list")[1]] == [texts["id"], labelled["id"]]
    fast = ("--max-steps", "6", "--max-length", "48", "--learning-rate", "0.005", "--rank", "4")
    code, run = terminal("train", "domain", "--dataset", texts["id"], "--name", "Dom", *fast)
    assert code == 0 and run["status"] == "finished" and run["step"] == 6
    _, run = terminal(
        "train", "task", "--dataset", labelled["id"], "--name", "Task", "--stack-on", "Dom", *fast
    )
    assert run["spec"]["stack_on"] == terminal("adapters", "list")[1][1]["id"]
    assert len(terminal("adapters", "verify", "Task")[1]["checked"]) == 3
    _, columns = terminal(
        "generate",
        "--prompt",
        "Where is the red lamp?",
        "--mix",
        "",
        "--mix",
        "Dom",
        "--mix",
        "Dom=0.7,Task=1",
        "--mix",
        "Dom=auto:0.7,Task=1",
        "--max-new-tokens",
        "6",
    )
    assert [len(c["stamp"]["weights"]) for c in columns[:3]] == [0, 1, 2]
    assert sorted(columns[2]["stamp"]["weights"].values()) == [0.7, 1.0]
    ((domain, decision),) = columns[3]["stamp"]["auto"].items()
    assert domain == terminal("adapters", "list")[1][1]["id"] and decision["weight"] in (0.0, 0.7)
    assert columns[3]["stamp"]["weights"].get(domain, 0.0) == decision["weight"]
    _, report = terminal(
        "evaluate",
        "--dataset",
        labelled["id"],
        "--split",
        "test",
        "--mix",
        "",
        "--mix",
        "Dom,Task",
        "--mix",
        "Dom=auto-soft,Task",
        "--no-general",
    )
    assert [r["questions"] for r in report["rows"]] == [8, 8, 8] and all(
        r["perplexity"] > 1 for r in report["rows"]
    )
    assert Mix.parse(report["rows"][2]["mix"]).auto == {domain: "soft"}, "the report keeps the gate"
    assert {r["status"] for r in terminal("runs", "list")[1]} == {"finished"}
    assert terminal("adapters", "remove", "Task")[0] == 0
    assert [a["name"] for a in terminal("adapters", "list")[1]] == ["Dom"]


def test_the_terminal_runs_a_grid_and_compares_its_runs(terminal: Any, corpus: Path, tmp_path: Path) -> None:
    _, texts = terminal("data", "add", str(corpus), "--name", "Texts")
    fast = ("--max-steps", "3", "--max-length", "48", "--learning-rate", "0.005")
    code, started = terminal(
        "grid", "start", "domain", "--dataset", texts["id"], "--name", "Ranks", "--vary", "rank=2,4", *fast
    )
    assert (
        code == 0
        and started["counts"] == {"finished": 2}
        and [r["best"] for r in started["rows"]] == [True, False]
    )
    assert {r["rank"] for r in started["rows"]} == {2, 4} and started["rows"][0]["best_loss"] <= started[
        "rows"
    ][1]["best_loss"]
    assert "standard error" in started["note"] and terminal("grid", "show", started["id"])[1] == started
    assert [g["id"] for g in terminal("grid", "show")[1]] == [started["id"]]
    file = tmp_path / "grid.csv"
    terminal("grid", "csv", started["id"], "--output", str(file))
    assert (
        file.read_text().splitlines()[0].startswith("rank,status,")
        and len(file.read_text().splitlines()) == 3
    )
    _, compared = terminal("runs", "compare", *[r["run"] for r in started["rows"]])
    assert sorted(compared["settings"]) == ["rank"] and {r["status"] for r in compared["runs"]} == {
        "finished"
    }
    assert terminal("grid", "cancel", started["id"])[1] == {"cancelled": []} and terminal(
        "grid", "collect", started["id"]
    )[1] == {"cells": []}
    code, refused = terminal("grid", "start", "domain", "--dataset", texts["id"], "--vary", "rank=0,2")
    assert code == 1 and "Rank must be between 1 and 256, got 0." in f"{refused['error']} {refused['fix']}"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("data", "add", "nothing.txt"), "nothing.txt"),
        (("adapters", "verify", "missing"), "The library has no adapter 'missing'"),
        (("generate", "--prompt", "Hi", "--mix", "missing"), "The library has no adapter 'missing'"),
        (("train", "domain", "--dataset", "nothing-0001"), "There is no dataset 'nothing-0001'"),
        (("train", "domain", "--dataset", "x", "--rank", "0"), "Rank must be between 1 and 256, got 0"),
        (("runs", "resume", "nothing-0001"), "There is no run 'nothing-0001'"),
        (("runs", "move", "nothing-0001", "up"), "There is no run 'nothing-0001'"),
        (("runs", "compare", "nothing-0001"), "must be between 2 and 8, got 1"),
        (("grid", "show", "nothing-0001"), "There is no grid 'nothing-0001'"),
        (
            ("grid", "start", "domain", "--dataset", "x", "--vary", "rank"),
            "--vary must be SETTING=VALUES, got 'rank'",
        ),
    ],
)
def test_errors_say_what_is_wrong_and_what_to_do_with_exit_code_1(
    terminal: Any, args: tuple[str, ...], expected: str
) -> None:
    code, answer = terminal(*args)
    assert code == 1 and expected in answer["error"]
    assert answer["fix"]


def test_every_training_setting_is_an_option_with_its_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import dataclasses

    from core.spec.training import TrainSpec

    with pytest.raises(SystemExit):
        main(["train", "task", "--help"])
    shown = "".join(capsys.readouterr().out.split())
    for f in dataclasses.fields(TrainSpec):
        if f.name != "kind":
            assert f"--{f.name.replace('_', '-')}" in shown
            assert "".join(f.metadata["help"].split()) in shown


RUN_KEYS = (
    "adapter base base_fingerprint created dataset_sha256 error extra id kind name resumable "
    "spec status step total_steps waited"
)
GRID_ROW_KEYS = (
    "adapter best best_loss best_perplexity final_loss final_perplexity rank run seconds status steps "
    "tokens_per_second"
)
JSON_KEYS = {
    "data list": "columns created duplicates encoding files id kind name ratios roles rows seed sha256 "
    "split_sha256 splits types",
    "bases list": "bytes kind name place why",
    "adapters list": "alpha base base_fingerprint bytes created dataset dataset_name id kind metadata name "
    "rank results run sha256 stacked_on target_modules unmixable",
    "runs list": RUN_KEYS,
    "runs show": f"{RUN_KEYS} meaning next_step",
    "generate": "done reason seconds stamp text tokens turns",
    "evaluate": "base created dataset dataset_name id rows seconds split",
    "grid define": "counts id name note rows",
    "grid show": "axes base created id name runs",
    "runs compare": "runs settings",
}


def test_json_output_has_the_keys_of_version_0_1_0(terminal: Any, corpus: Path) -> None:
    """Programs read these keys, also where an attribute in the code has another name by now."""
    _, data = terminal("data", "add", str(corpus), "--name", "Texts")
    fast = ("--dataset", data["id"], "--max-steps", "1", "--max-length", "48")
    ids = [terminal("train", "domain", "--name", name, *fast)[1]["id"] for name in ("One", "Two")]
    arguments = {
        "runs show": [ids[0]],
        "runs compare": ids,
        "generate": ["--prompt", "Hi", "--mix", "One", "--max-new-tokens", "2"],
        "evaluate": ["--dataset", data["id"], "--mix", "", "--no-general", "--limit", "2"],
        "grid define": ["domain", *fast, "--vary", "rank=2,4"],
    }
    values = {verb: terminal(*verb.split(), *arguments.get(verb, ()))[1] for verb in JSON_KEYS}
    for verb, keys in JSON_KEYS.items():
        value = values[verb][0] if isinstance(values[verb], list) else values[verb]
        assert set(keys.split()) <= set(value), verb  # later versions may add keys
    assert sorted(values["grid define"]["rows"][0]) == sorted(GRID_ROW_KEYS.split())
    figures = "best_loss final_loss name run seconds status"
    assert sorted(values["runs compare"]["runs"][0]) == sorted(figures.split())
