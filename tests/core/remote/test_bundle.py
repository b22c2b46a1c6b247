"""Runs on other machines: one file goes, one comes back, and nothing of it is believed that was not asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
import stat
import sys
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
from core.remote import bundle, collect, command_template
from core.spec.mix import Mix, Sampling
from core.spec.training import RunStatus, TrainSpec
from core.store import archives, runs
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
COMMAND = ["python", "-m", "core", "bundle", "run", "/a b/it's.zip", "-o", "/a b/$x.zip"]
VALUES = {"bundle": "/a b/it's.zip", "result": "/a b/$x.zip", "name": "Ranks: rank 2; rm -rf ~"}


# --- templates


@pytest.mark.parametrize("template, said", [
    ("run {home} {command}", "{home}"), ("sbatch --wrap \"{command}", "No closing quotation"), ("sbatch", "neither {command} nor {bundle}"), ("", "neither"),
    ("a {command} {", "single brace"), ("bash -c \"ssh box '{command}'\"", "quotes inside of quotes"), ("bash -c 'x \"{name}\" {command}'", "quotes inside of quotes"),
    ("bash -c 'echo ${HOME}; {command}'", "{HOME}"),
])  # fmt: skip
def test_a_template_that_cannot_be_filled_in_safely_is_refused_with_what_is_allowed(
    template: str, said: str
) -> None:
    with pytest.raises(SpecError) as told:
        command_template.fill(template, COMMAND, VALUES)
    assert said in told.value.what and told.value.fix


def test_names_and_paths_with_spaces_and_shell_characters_stay_one_value() -> None:
    line = shlex.join(COMMAND)
    assert command_template.fill('sbatch --job-name={name} -J {name} --wrap "{command}"', COMMAND, VALUES) == [
        "sbatch", f"--job-name={VALUES['name']}", "-J", VALUES["name"], "--wrap", line
    ]  # fmt: skip
    assert command_template.fill("bash -c {command}", COMMAND, VALUES) == ["bash", "-c", line]
    filled = command_template.fill(
        "sh -c 'cd x; {command} --base /b; echo {name}>{result}'", COMMAND, VALUES
    )[-1]
    assert shlex.split(filled) == [
        "cd",
        "x;",
        *COMMAND,
        "--base",
        "/b;",
        "echo",
        f"{VALUES['name']}>{VALUES['result']}",
    ]


def test_a_real_shell_reads_what_was_filled_in_as_it_was_meant(tmp_path: Path) -> None:
    import subprocess

    place = tmp_path / 'it\'s $HOME; a "place"'
    place.mkdir()
    words = [
        sys.executable,
        "-c",
        "import sys; open(sys.argv[1], 'w').write(sys.argv[2])",
        str(place / "out"),
        VALUES["name"],
    ]
    subprocess.run(command_template.fill("bash -c 'true && {command}'", words, VALUES), check=True)
    assert (place / "out").read_text() == VALUES["name"]


# --- archives


def zipped(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes], level: int = 9) -> Path:
    sums = "".join(
        f"{hashlib.sha256(b).hexdigest()}  {m if isinstance(m, str) else m.filename}\n" for m, b in members
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as z:
        for name, content in members:
            z.writestr(name, content)
        z.writestr(archives.SUMS, sums)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("members, said", [
    ([("../x", b"x")], "'../x' does not belong"), ([("/etc/x", b"x")], "'/etc/x' does not belong"), ([("adapters/a/../../x", b"x")], "does not belong"),
    ([("adapters/a/.hidden", b"x")], "does not belong"), ([("adapters\\a\\x", b"x")], "does not belong"),
    ([(link("adapters/a/x"), b"/etc/passwd")], "not a plain file"), ([("adapters/a/x", b"\0" * (8 << 20))], "-fold"),
], ids=["up", "absolute", "through", "hidden", "backslash", "link", "bomb"])  # fmt: skip
def test_an_archive_that_reaches_out_or_swells_is_refused_before_anything_is_unpacked(
    tmp_path: Path, members: Any, said: str
) -> None:
    path, place = zipped(tmp_path / "r.zip", *members), tmp_path / "place"
    place.mkdir()
    with pytest.raises(DataError, match="r.zip") as told:
        archives.extract(path, place, bundle.IN_RESULT)
    assert said in str(told.value) and not list(place.iterdir()) and not (tmp_path / "x").exists()


def test_an_archive_with_too_much_or_other_bytes_or_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    good = zipped(tmp_path / "good.zip", ("run.json", b"{}"), ("adapters/a/x", b"abcd" * 9))
    for limit, value, said in (
        ("COUNT_LIMIT", 2, "3 members"),
        ("MEMBER_LIMIT_BYTES", 35, "GB"),
        ("TOTAL_LIMIT_BYTES", 37, "GB"),
        ("SUMS_LIMIT_BYTES", 5, "too large"),
    ):
        with monkeypatch.context() as m, pytest.raises(DataError, match=said):
            m.setattr(archives, limit, value)
            archives.extract(good, tmp_path / limit, bundle.IN_RESULT)
    torn = tmp_path / "torn.zip"
    torn.write_bytes(good.read_bytes()[:-30])
    bare = tmp_path / "bare.zip"
    with zipfile.ZipFile(bare, "w") as z:
        z.writestr("run.json", "{}")
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as z:
        z.writestr("run.json", "[]")
        z.writestr(archives.SUMS, f"{hashlib.sha256(b'{}').hexdigest()}  run.json\n")
    for path, said in (
        (torn, "cannot be read as a zip"),
        (bare, "no SHA256SUMS"),
        (other, "its sha256 differs"),
    ):
        with pytest.raises(DataError, match=said):
            archives.extract(path, place / path.stem, bundle.IN_RESULT)
    (tmp_path / "linked.zip").symlink_to(good)
    with pytest.raises(StudioError, match="not a regular file"):
        archives.extract(tmp_path / "linked.zip", place, bundle.IN_RESULT)
    assert sorted(archives.extract(good, place / "good", bundle.IN_RESULT)) == ["adapters/a/x", "run.json"]


def test_the_flattest_bytes_that_we_pack_are_taken_again(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(b"\0" * (16 << 20))
    archives.write(tmp_path / "a.zip", {"adapters/a/zeros": tmp_path / "zeros"})
    assert (tmp_path / "a.zip").stat().st_size < 1 << 20
    archives.extract(tmp_path / "a.zip", tmp_path / "place", bundle.IN_RESULT)
    assert (tmp_path / "place/adapters/a/zeros").stat().st_size == 16 << 20


# --- the way there and back


@pytest.fixture(scope="module")
def home(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a corpus, pairs, a domain adapter, and a grid of two cells with spaces in its name."""
    root = tmp_path_factory.mktemp("a home")
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
def engine(home: Path, tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine without a model on a copy of that workspace."""
    shutil.copytree(home, tmp_path / "ws")
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu", load=False) as made:
        yield made


def task(engine: Engine, **changes: Any) -> TrainSpec:
    domain = next(a for a in engine.library.adapters() if a.kind == "domain")
    data = next(d for d in engine.datasets.list() if d.kind == "task")
    return TrainSpec(
        **{"kind": "task", "name": "Task", "dataset": data.id, "stack_on": domain.id, **FAST, **changes}
    )


@pytest.fixture(scope="module")
def travelled(home: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A workspace that packed a task on a domain, and the result, which it has not collected."""
    root = tmp_path_factory.mktemp("travelled")
    shutil.copytree(home, root / "ws")
    with Engine(root / "ws", str(tiny_base), load=False) as engine:
        bundle.pack(engine.workspace, task(engine), root / "bundle.zip", str(tiny_base), "none")
    bundle.run(root / "bundle.zip", root / "result.zip")
    assert not list(root.glob("*.workspace*")), "the workspace elsewhere is gone"
    return root / "ws", root / "result.zip"


@pytest.fixture
def back(travelled: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> Iterator[tuple[Engine, Path]]:
    shutil.copytree(travelled[0], tmp_path / "back")
    with Engine(tmp_path / "back", str(tiny_base), load=False) as made:
        yield made, travelled[1]


def test_a_task_on_a_domain_comes_back_under_the_ids_it_was_promised_and_once(
    back: tuple[Engine, Path],
) -> None:
    engine, result = back
    asked = bundle.sent(engine.workspace)[-1]
    run = collect.collect(engine, result)
    assert (run.id, run.adapter, run.status, run.step, run.spec) == (
        asked.run,
        asked.adapter,
        RunStatus.DONE,
        4,
        asked.spec,
    )
    adapter = engine.library.adapter(run.adapter)
    assert (
        len(engine.library.verify(adapter.id)) == 3
        and adapter.stacked_on == asked.spec.stack_on
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
    with pytest.raises(RunError, match="here already"):
        collect.collect(engine, result)
    with pytest.raises(RunError, match="has finished"):
        bundle.pack(engine.workspace, run.id, None)
    assert not list((engine.workspace.root / "exports").glob(".*")), "nothing half-made is left"


def rewritten(result: Path, out: Path, change: Callable[[dict[str, bytes]], None], sums: bool = True) -> Path:
    """The result with some members changed; with `sums`, by someone who knows how to write sums, the adapter's own as well."""
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


def flipped(members: dict[str, bytes]) -> None:
    name = next(n for n in members if n.endswith(".safetensors"))
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])


def edited(member: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        name = next(n for n in members if n.endswith(member))
        value = json.loads(members[name])
        change(value)
        members[name] = json.dumps(value).encode()

    return edit


@pytest.mark.parametrize("change, sums, error, said", [
    (flipped, False, DataError, "adapter_model.safetensors is not what was packed"),
    (flipped, True, AdapterError, "names other weights"),
    (edited("run.json", lambda r: r["spec"].update(rank=16)), False, DataError, "run.json is not what was packed"),
    (edited("run.json", lambda r: r["spec"].update(learning_rate=1e-3)), True, RunError, "not trained with the settings"),
    (edited("run.json", lambda r: r["spec"].update(rank=-1)), True, RunError, "settings cannot be read"),
    (edited("run.json", lambda r: r.update(dataset_sha256="0" * 64)), True, RunError, "not trained with the data"),
    (edited("result.json", lambda r: r.update(fingerprint="0" * 64)), True, RunError, "not trained with the base model"),
    (edited("run.json", lambda r: r.update(status="stopped")), True, RunError, "not of a run that finished"),
    (edited("result.json", lambda r: r.update(run="../../x")), True, StudioError, "not an id"),
    (edited("result.json", lambda r: r.update(run="nobody-0000")), True, NotFound, "was not packed in this workspace"),
    (edited("EXPERIMENT_METADATA.json", lambda m: m["base"].update(fingerprint="0" * 64)), True, AdapterError, "another base"),
    (edited("EXPERIMENT_METADATA.json", lambda m: m["stacked_on"].update(sha256="0" * 64)), True, AdapterError, "adapter below"),
    (edited("adapter_config.json", lambda c: c.update(r=8)), True, AdapterError, "not a LoRA factor of rank 8"),
    (edited("adapter_config.json", lambda c: c.update(target_modules="(a+)+")), True, AdapterError, "target_modules"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_a_result_that_is_not_what_was_asked_for_is_refused_and_leaves_nothing(
    back: tuple[Engine, Path], tmp_path: Path, change: Any, sums: bool, error: type[StudioError], said: str
) -> None:
    engine, result = back
    before = engine.workspace.ids("adapters"), engine.workspace.ids("runs")
    with pytest.raises(error, match=said):
        collect.collect(engine, rewritten(result, tmp_path / "changed.zip", change, sums))
    assert (engine.workspace.ids("adapters"), engine.workspace.ids("runs")) == before
    assert not list((engine.workspace.root / "exports").glob(".*"))
    assert collect.collect(engine, result).status is RunStatus.DONE, "the true one is still taken"


def test_what_a_result_tells_besides_its_figures_is_not_kept(
    back: tuple[Engine, Path], tmp_path: Path
) -> None:
    engine, result = back

    def lie(members: dict[str, bytes]) -> None:
        edited(
            "EXPERIMENT_METADATA.json",
            lambda m: m.update(
                name="<b>", learned_from=["x"], hyperparameters={}, results={"steps": 4, "x": [1], "y": "z"}
            ),
        )(members)
        edited(
            "adapter_config.json", lambda c: c.update(auto_mapping={"a": 1}, base_model_name_or_path="/evil")
        )(members)
        members["events.jsonl"] += b'[1]\n{"no": "kind"}\n{"kind": "note", "text": "hi"}\n'

    run = collect.collect(engine, rewritten(result, tmp_path / "r.zip", lie))
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


def test_a_bundle_that_was_cut_off_goes_on_and_learns_what_it_would_have_here(
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
    made = bundle.pack(engine.workspace, spec, packed, str(tiny_base), "none")
    assert bundle.pack(engine.workspace, spec, packed, str(tiny_base), "none").run == made.runs.get, (
        "asked twice, it is the same run"
    )

    def cut(there: Engine, run_id: str) -> None:
        while there.runs.get(run_id).step < 3:
            time.sleep(0.01)
        there.runs.pause(run_id)
        there.runs.wait(run_id)

    with pytest.raises(RunError, match="did not finish"):
        bundle.run(packed, result, follow=cut)
    assert not result.exists()
    with pytest.raises(Busy, match="belongs to another bundle"):
        bundle.pack(engine.workspace, task(engine), tmp_path / "b2.zip", str(tiny_base))
        bundle.run(tmp_path / "b2.zip", result)
    bundle.run(packed, result)
    run = collect.collect(engine, result)
    assert (
        any(str(e.get("text", "")).startswith("Resumed from step") for e in engine.runs.events(run.id)[0])
        and run.step == 40
    )
    engine.bases.load()
    here = engine.runs.wait(engine.runs.start(dataclasses.replace(spec, name="Here")))
    assert engine.library.adapter(here.adapter).sha256 == engine.library.adapter(run.adapter).sha256


def test_a_run_that_never_began_here_is_packed_in_the_terminal_under_its_own_id(
    engine: Engine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = engine.runs.list()[0]
    waiting = dataclasses.replace(done, id="waiting-0001", adapter="waiting-0002", status=RunStatus.QUEUED)
    runs.put(engine.workspace, waiting)
    common = ["-o", str(tmp_path / "w.zip"), "--workspace", str(engine.workspace.root), "--json"]
    for run_id, code in ((waiting.id, 0), (done.id, 1), ("nobody-0000", 1)):
        assert main(["bundle", "pack", run_id, *common]) == code
    assert [
        r.get("run")
        for r in map(json.loads, filter(lambda t: t[0] == "{", capsys.readouterr().out.splitlines()))
    ] == [waiting.id, None, None]
    assert bundle.unpack(tmp_path / "w.zip", tmp_path / "place").adapter == waiting.adapter
    engine.bases.load()
    engine.bases.current(wait=True)
    engine.runs.resume(waiting.id)
    with pytest.raises(Busy):
        bundle.pack(engine.workspace, waiting.id, None)
    engine.runs.wait(waiting.id)


def test_a_bundle_on_another_base_or_changed_is_refused(
    engine: Engine, tiny_base: Path, tmp_path: Path
) -> None:
    bundle.pack(engine.workspace, task(engine), tmp_path / "b.zip", str(tiny_base))
    other = build_tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(BaseModelError, match="other weights"):
        bundle.run(tmp_path / "b.zip", tmp_path / "r.zip", base=str(other))
    with zipfile.ZipFile(tmp_path / "b.zip") as z:
        members = {n: z.read(n) for n in z.namelist() if n != archives.SUMS}
    edited("bundle.json", lambda b: b["spec"].update(rank=16))(members)
    archives.write(tmp_path / "c.zip", members)
    with pytest.raises(SpecError, match="not those of its checksum"):
        bundle.unpack(tmp_path / "c.zip", tmp_path / "c")
    with pytest.raises(StudioError, match="There is no adapter"):
        bundle.pack(
            engine.workspace, task(engine, stack_on="nobody-0000"), tmp_path / "d.zip", str(tiny_base)
        )
    assert not (tmp_path / "c").exists() and not (tmp_path / "r.zip").exists()


@pytest.mark.slow
def test_a_grid_is_sent_trained_by_processes_of_a_template_collected_and_mixed(
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
    code, errands = terminal(
        "grid", "send", grid.id, "--quantization", "none", "--template", "bash -c {command}"
    )
    assert code == 0 and len(errands) == 2
    assert terminal("grid", "send", grid.id, "--template", "bash -c {command}")[1] == [], (
        "what was handed over is not sent twice"
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
