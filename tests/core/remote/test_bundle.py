"""Runs on other machines: packed, trained, collected, and refused where a result differs from its bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine
from core.errors import (
    AdapterError,
    BaseModelError,
    Busy,
    DataError,
    NotFound,
    RunError,
    SpecError,
    StudioError,
)
from core.remote.collect import collect
from core.remote.pack import pack
from core.remote.run_bundle import run_bundle, unpack
from core.spec.mix import Mix, Sampling
from core.spec.training import RunStatus, TrainSpec
from core.store import archives, runs
from core.store.bundles import list_bundles
from tests.conftest import SENTENCES, build_tiny_llama

FAST: dict[str, Any] = {
    "max_steps": 4,
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 1,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def packing_workspace(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a corpus, pairs, a domain adapter, and a grid of two cells with spaces in its name."""
    root = tmp_path_factory.mktemp("a workspace")
    text, pairs = root / "corpus.txt", root / "pairs.jsonl"
    text.write_text("\n\n---\n\n".join(SENTENCES[:48]), encoding="utf-8")
    pairs.write_text(
        "".join(
            json.dumps({"question": f"Where is the {s.split()[2]}?", "answer": s}) + "\n"
            for s in SENTENCES[:48]
        ),
        encoding="utf-8",
    )
    with Engine(root / "ws", str(tiny_base), "none", "cpu") as engine:
        data = engine.datasets.import_files([text], "Corpus", "domain")
        engine.datasets.import_files([pairs], "Pairs", "task")
        spec = TrainSpec(**{"kind": "domain", "name": "Domain", "dataset": data.id, **FAST})
        assert engine.runs.wait(engine.runs.start(spec)).status is RunStatus.DONE
        engine.grids.define(spec, {"rank": [2, 8]}, "Ranks of 'mine'")
    return root / "ws"


@pytest.fixture
def engine(packing_workspace: Path, tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine without a model on a copy of that workspace."""
    shutil.copytree(packing_workspace, tmp_path / "ws")
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu", load=False) as made:
        yield made


def task(engine: Engine, **changes: Any) -> TrainSpec:
    domain = next(a for a in engine.library.adapters() if a.kind == "domain")
    data = next(d for d in engine.datasets.list() if d.kind == "task")
    return TrainSpec(
        **{"kind": "task", "name": "Task", "dataset": data.id, "stack_on": domain.id, **FAST, **changes}
    )


@pytest.fixture(scope="module")
def sent_and_trained(
    packing_workspace: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A workspace that packed a task on a domain, and the result, which it has not collected."""
    root = tmp_path_factory.mktemp("sent_and_trained")
    shutil.copytree(packing_workspace, root / "ws")
    with Engine(root / "ws", str(tiny_base), load=False) as engine:
        pack(engine.workspace, task(engine), root / "bundle.zip", str(tiny_base), "none")
    run_bundle(root / "bundle.zip", root / "result.zip")
    assert not list(root.glob("*.workspace*")), "the workspace of the other machine is removed"
    return root / "ws", root / "result.zip"


@pytest.fixture
def collecting(
    sent_and_trained: tuple[Path, Path], tiny_base: Path, tmp_path: Path
) -> Iterator[tuple[Engine, Path]]:
    shutil.copytree(sent_and_trained[0], tmp_path / "collecting")
    with Engine(tmp_path / "collecting", str(tiny_base), load=False) as made:
        yield made, sent_and_trained[1]


def test_a_result_is_collected_once_under_the_ids_of_its_bundle(
    collecting: tuple[Engine, Path],
) -> None:
    engine, result = collecting
    bundle = list_bundles(engine.workspace)[-1]
    run = collect(engine, result)
    assert (run.id, run.adapter, run.status, run.step, run.spec) == (
        bundle.run_id,
        bundle.adapter_id,
        RunStatus.DONE,
        4,
        bundle.spec,
    )
    adapter = engine.library.adapter(run.adapter)
    assert (
        len(engine.library.verify(adapter.id)) == 3
        and adapter.stacked_on == bundle.spec.stack_on
        and adapter.dataset_name == "Pairs"
    )
    assert (
        adapter.results["steps"] == 4
        and adapter.results["validation_loss"] > 0
        and adapter.metadata["versions"]["torch"]
    )
    assert [e["status"] for e in engine.runs.events(run.id)[0] if e["kind"] == "status"] == [
        "queued",
        "running",
        "finished",
    ]
    assert len(engine.runs.history(run.id).train) == 4
    with pytest.raises(RunError, match="already finished in this workspace"):
        collect(engine, result)
    with pytest.raises(RunError, match="has finished"):
        pack(engine.workspace, run.id, None)
    assert not list((engine.workspace.root / "exports").glob(".*")), "no partial file is left"


def rewrite(result: Path, out: Path, change: Callable[[dict[str, bytes]], None], sums: bool = True) -> Path:
    """The result with some members changed; with `sums`, with new checksums, also those of the adapter."""
    with zipfile.ZipFile(result) as z:
        members = {n: z.read(n) for n in z.namelist() if n != archives.SUMS or not sums}
    change(members)
    if not sums:
        with zipfile.ZipFile(out, "w") as z:
            for name, content in members.items():
                z.writestr(name, content)
        return out
    own = next(n for n in members if n.endswith("/checksums.txt"))
    folder = own.rpartition("/")[0]
    lines = [
        f"{hashlib.sha256(b).hexdigest()}  {n.rpartition('/')[2]}\n"
        for n, b in members.items()
        if n.startswith(folder) and n != own
    ]
    archives.write(out, {**members, own: "".join(lines).encode()})
    return out


def flip_bit(members: dict[str, bytes]) -> None:
    name = next(n for n in members if n.endswith(".safetensors"))
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])


def edit_json(member: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        name = next(n for n in members if n.endswith(member))
        value = json.loads(members[name])
        change(value)
        members[name] = json.dumps(value).encode()

    return edit


@pytest.mark.parametrize(
    "change, sums, error, expected",
    [
        (flip_bit, False, DataError, r"sha256 of \S*adapter_model.safetensors does not match"),
        (flip_bit, True, AdapterError, "is not that of adapter_model.safetensors"),
        (
            edit_json("run.json", lambda r: r["spec"].update(rank=16)),
            False,
            DataError,
            "sha256 of run.json does not match SHA256SUMS",
        ),
        (
            edit_json("run.json", lambda r: r["spec"].update(learning_rate=1e-3)),
            True,
            RunError,
            "not trained with the settings",
        ),
        (
            edit_json("run.json", lambda r: r["spec"].update(rank=-1)),
            True,
            RunError,
            "settings cannot be read",
        ),
        (
            edit_json("run.json", lambda r: r.update(dataset_sha256="0" * 64)),
            True,
            RunError,
            "not trained with the data",
        ),
        (
            edit_json("result.json", lambda r: r.update(fingerprint="0" * 64)),
            True,
            RunError,
            "not trained with the base model",
        ),
        (
            edit_json("run.json", lambda r: r.update(status="stopped")),
            True,
            RunError,
            "not of a run that finished",
        ),
        (edit_json("result.json", lambda r: r.update(run="../../x")), True, StudioError, "not an id"),
        (
            edit_json("result.json", lambda r: r.update(run="missing-0000")),
            True,
            NotFound,
            "was not packed in this workspace",
        ),
        (
            edit_json("EXPERIMENT_METADATA.json", lambda m: m["base"].update(fingerprint="0" * 64)),
            True,
            AdapterError,
            "another base",
        ),
        (
            edit_json("EXPERIMENT_METADATA.json", lambda m: m["stacked_on"].update(sha256="0" * 64)),
            True,
            AdapterError,
            "parent adapter",
        ),
        (
            edit_json("adapter_config.json", lambda c: c.update(r=8)),
            True,
            AdapterError,
            "not a LoRA factor of rank 8",
        ),
        (
            edit_json("adapter_config.json", lambda c: c.update(target_modules=".*_proj")),
            True,
            AdapterError,
            "target_modules",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_result_that_differs_from_its_bundle_is_refused_and_leaves_nothing(
    collecting: tuple[Engine, Path],
    tmp_path: Path,
    change: Any,
    sums: bool,
    error: type[StudioError],
    expected: str,
) -> None:
    engine, result = collecting
    before = engine.workspace.ids("adapters"), engine.workspace.ids("runs")
    with pytest.raises(error, match=expected):
        collect(engine, rewrite(result, tmp_path / "changed.zip", change, sums))
    assert (engine.workspace.ids("adapters"), engine.workspace.ids("runs")) == before
    assert not list((engine.workspace.root / "exports").glob(".*"))
    assert collect(engine, result).status is RunStatus.DONE, "the unchanged one can still be collected"


def test_only_figures_and_versions_of_a_results_metadata_are_kept(
    collecting: tuple[Engine, Path], tmp_path: Path
) -> None:
    engine, result = collecting

    def lie(members: dict[str, bytes]) -> None:
        edit_json(
            "EXPERIMENT_METADATA.json",
            lambda m: m.update(
                name="<b>", learned_from=["x"], hyperparameters={}, results={"steps": 4, "x": [1], "y": "z"}
            ),
        )(members)
        edit_json(
            "adapter_config.json", lambda c: c.update(auto_mapping={"a": 1}, base_model_name_or_path="/evil")
        )(members)
        members["events.jsonl"] += b'[1]\n{"no": "kind"}\n{"kind": "note", "text": "hi"}\n'

    run = collect(engine, rewrite(result, tmp_path / "r.zip", lie))
    adapter = engine.library.adapter(run.adapter)
    assert (
        adapter.name == "Task" and adapter.results == {"steps": 4} and "learned_from" not in adapter.metadata
    )
    assert adapter.metadata["hyperparameters"] == run.spec.to_json()
    config = json.loads((engine.workspace.path("adapters", adapter.id) / "adapter_config.json").read_text())
    assert "auto_mapping" not in config and "base_model_name_or_path" not in config
    assert [e["kind"] for e in engine.runs.events(run.id)[0]][-1] == "note" and all(
        "kind" in e for e in engine.runs.events(run.id)[0]
    )


def test_an_interrupted_bundle_resumes_and_trains_the_same_weights(
    engine: Engine, tiny_base: Path, tmp_path: Path
) -> None:
    texts, domain = (
        next(d for d in engine.datasets.list() if d.kind == "domain"),
        next(r for r in engine.runs.list() if r.kind == "domain"),
    )
    spec = dataclasses.replace(
        domain.spec, name="Long", max_steps=40, replay_share=0.3, replay_dataset=texts.id
    )
    packed, result = tmp_path / "b.zip", tmp_path / "r.zip"
    first = pack(engine.workspace, spec, packed, str(tiny_base), "none")
    assert pack(engine.workspace, spec, packed, str(tiny_base), "none").run_id == first.run_id, (
        "packed twice, it is the same run"
    )

    def cut(there: Engine, run_id: str) -> None:
        while there.runs.get(run_id).step < 3:
            time.sleep(0.01)
        there.runs.pause(run_id)
        there.runs.wait(run_id)

    with pytest.raises(RunError, match="did not finish"):
        run_bundle(packed, result, follow=cut)
    assert not result.exists()
    with pytest.raises(Busy, match="belongs to another bundle"):
        pack(engine.workspace, task(engine), tmp_path / "b2.zip", str(tiny_base))
        run_bundle(tmp_path / "b2.zip", result)
    run_bundle(packed, result)
    run = collect(engine, result)
    assert (
        any(str(e.get("text", "")).startswith("Resumed from step") for e in engine.runs.events(run.id)[0])
        and run.step == 40
    )
    engine.bases.load()
    here = engine.runs.wait(engine.runs.start(dataclasses.replace(spec, name="Here")))
    assert engine.library.adapter(here.adapter).sha256 == engine.library.adapter(run.adapter).sha256


def test_the_terminal_packs_a_queued_run_under_its_own_id(
    engine: Engine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = engine.runs.list()[0]
    queued = dataclasses.replace(done, id="queued-0001", adapter="queued-0002", status=RunStatus.QUEUED)
    runs.put(engine.workspace, queued)
    common = ["-o", str(tmp_path / "w.zip"), "--workspace", str(engine.workspace.root), "--json"]
    for run_id, code in ((queued.id, 0), (done.id, 1), ("missing-0000", 1)):
        assert main(["bundle", "pack", run_id, *common]) == code
    assert [
        r.get("run")
        for r in map(json.loads, filter(lambda t: t[0] == "{", capsys.readouterr().out.splitlines()))
    ] == [queued.id, None, None]
    assert unpack(tmp_path / "w.zip", tmp_path / "folder").adapter_id == queued.adapter
    engine.bases.load()
    engine.bases.current(wait=True)
    engine.runs.resume(queued.id)
    with pytest.raises(Busy):
        pack(engine.workspace, queued.id, None)
    engine.runs.wait(queued.id)


def test_a_bundle_on_another_base_or_changed_is_refused(
    engine: Engine, tiny_base: Path, tmp_path: Path
) -> None:
    pack(engine.workspace, task(engine), tmp_path / "b.zip", str(tiny_base))
    other = build_tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(BaseModelError, match="other weights"):
        run_bundle(tmp_path / "b.zip", tmp_path / "r.zip", base=str(other))
    with zipfile.ZipFile(tmp_path / "b.zip") as z:
        members = {n: z.read(n) for n in z.namelist() if n != archives.SUMS}
    edit_json("bundle.json", lambda b: b["spec"].update(rank=16))(members)
    archives.write(tmp_path / "c.zip", members)
    with pytest.raises(SpecError, match="do not match its checksum"):
        unpack(tmp_path / "c.zip", tmp_path / "c")
    with pytest.raises(StudioError, match="There is no adapter"):
        pack(engine.workspace, task(engine, stack_on="missing-0000"), tmp_path / "d.zip", str(tiny_base))
    assert not (tmp_path / "c").exists() and not (tmp_path / "r.zip").exists()


@pytest.mark.slow
def test_a_grid_is_sent_trained_collected_and_mixed(
    engine: Engine, tiny_base: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = ["--workspace", str(engine.workspace.root), "--base", str(tiny_base), "--json"]

    def terminal(*args: str) -> tuple[int, Any]:
        code = main([*args, *common])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    grid = engine.grids.list()[0]
    assert terminal("grid", "send", grid.id, "--template", "bash -c 'exit 3' {bundle}")[1][
        "error"
    ].startswith("The template's command ended with code 3")
    assert (
        "could not be started"
        in terminal("grid", "send", grid.id, "--template", "no-such-program {command}")[1]["error"]
    )
    code, sent = terminal(
        "grid", "send", grid.id, "--quantization", "none", "--template", "bash -c {command}"
    )
    assert code == 0 and len(sent) == 2, sent
    assert sorted(sent[0]) == ["bundle", "cell", "name", "result", "said"]
    assert terminal("grid", "send", grid.id, "--template", "bash -c {command}")[1] == [], (
        "a cell is not sent twice"
    )
    results = [str(p) for p in sorted((engine.workspace.root / "exports").glob("*/result.zip"))]
    code, taken = terminal("bundle", "collect", *results)
    assert code == 0 and {r["status"] for r in taken} == {"finished"}
    shown = terminal("grid", "show", grid.id)[1]
    assert (
        shown["counts"] == {"finished": 2}
        and {r["rank"] for r in shown["rows"]} == {2, 8}
        and [r["best"] for r in shown["rows"]] == [True, False]
    )
    assert (
        all(r["best_loss"] > 0 and r["steps"] == 4 for r in shown["rows"])
        and "standard error" in shown["note"]
    )
    engine.bases.load()
    for row in shown["rows"]:
        assert len(engine.library.verify(row["adapter"])) == 3
    mix = Mix(weights={r["adapter"]: 0.5 for r in shown["rows"]})
    answer = engine.chat.stream("The red lamp", [Mix(), mix], Sampling(max_new_tokens=4), chat=False).last()
    assert sorted(answer.columns[1].stamp["weights"].values()) == [0.5, 0.5]
