"""One damaged file costs one item: every file of a workspace is damaged in turn, and the rest stays usable.

The files, the JSON keys in them, and the lists of the engine are found, not named here. So a new kind of item
is covered as soon as the workspace of the test has one, and a test fails while it has none.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli import common as cli_common
from core.cli import grids as cli_grids
from core.cli import library as cli_library
from core.cli import runs as cli_runs
from core.engine import Engine
from core.engine.damaged import LOADERS, WORKSPACE
from core.errors import DamagedRecord, RunError, StudioError
from core.spec.experiment import ExperimentSpec
from core.spec.training import RunStatus, TrainSpec
from core.store import converted_bases, experiments, grids, reports, runs
from core.store.converted_bases import ConvertedBase
from core.store.files import delete, write_json
from core.store.records import Damaged
from core.store.workspace import FILE_KINDS, KINDS, Workspace
from studio.app import build
from studio.components import guide, live
from studio.tabs import evaluate, grid, library
from studio.tabs import mix as mix_tab
from studio.tabs import runs as runs_tab
from studio.views import data as data_views
from studio.views import runs as run_views

STORED = Path(__file__).resolve().parents[2] / "data" / "old_workspace"
# JSON texts that replace a value: other types, and values that no record has.
WRONG = (
    "null", "true", '"?"', "[]", "{}", "-1", "0.5", "NaN", "1e400", str(2**70), '"\\ud800"', "[null]",
    '{"a": [1]}', "[" * 33 + "]" * 33,
)  # fmt: skip
RAW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda b: b"",
    "a quarter": lambda b: b[: len(b) // 4],
    "a half": lambda b: b[: len(b) // 2],
    "without its end": lambda b: b[:-2],
    "not UTF-8": lambda b: b"\xff\xfe" + b[: len(b) // 2] + b"\xff",
    "zeros": lambda b: b"\0" * len(b),
    "a list": lambda b: b"[]\n",
    "null": lambda b: b"null\n",
    "text": lambda b: b'"text"\n',
}
# The file of an item without which it cannot be read.
RECORDS = ("dataset.json", "run.json", "report.json", "map.json", "sent.json", "EXPERIMENT_METADATA.json",
           "adapter_config.json", "source.json", "experiment.json")  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A workspace with every kind of item, without a base."""
    root = tmp_path_factory.mktemp("damaged") / "ws"
    shutil.copytree(STORED, root)
    runs_folder = root / "runs" / "killed-df78"
    (runs_folder / "asked").write_text("keep", encoding="utf-8")
    error = {"kind": "RunError", "what": "a", "fix": "b", "time": 1.0, "process": 0, "of": 1}
    write_json(runs_folder / "error-0.json", error)
    base = root / "bases" / "tiny-0123456789ab"
    write_json(base / "config.json", {"model_type": "llama"})
    record = ConvertedBase(base.name, "Tiny", "tiny.gguf", "/tiny.gguf", "0" * 64, 24)
    converted_bases.write(base, record)
    spec = ExperimentSpec(name="Does it help?", dataset="notes", mixes=("",))
    experiments.create(Workspace(root), spec, "embedded", "0" * 64)
    with Engine(root, load=False) as made:
        made.bases.load = lambda: None  # type: ignore[method-assign]
        yield made


# ------------------------------------------------------------ what is found by itself


def list_methods(engine: Engine) -> dict[str, Callable[[], Any]]:
    """The lists of the engine: public methods without arguments whose annotation is a list of items."""
    found = {}
    for noun, owner in vars(engine).items():
        if noun.startswith("_") or not type(owner).__module__.startswith("core.engine"):
            continue
        for name, method in inspect.getmembers(owner, inspect.ismethod):
            required = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
            if name.startswith("_") or any(p.kind is not p.VAR_POSITIONAL for p in required):
                continue
            returned = str(inspect.signature(method).return_annotation)
            item = re.fullmatch(r"(?:list|Sequence)\[(\w+)\]", returned)
            if item and item[1] not in (
                "str",
                "int",
                "Mix",
                "Damaged",
                "Extra",
                "LocalBase",
                "Standing",
                "TrashedItem",
            ):
                found[f"{noun}.{name}"] = method
    return found


def ids_of(method: Callable[[], Any]) -> set[str]:
    return {getattr(i, "id", "") or i.run.id for i in method()}


def form_of(engine: Engine, path: Path) -> str:
    """The place of a file without the ids and numbers in it."""
    kind, *parts = path.relative_to(engine.workspace.root).parts
    return "/".join([kind, *(re.sub(r"[0-9a-f]{4,}|[\w-]+-(?=[0-9a-f]{4})|\d+", "", p) for p in parts[1:])])


def list_values(engine: Engine) -> list[tuple[Path, tuple[Any, ...]]]:
    """One file of every form, with (), and every value in a JSON file, by its keys; each key once."""
    seen, found = set(), []
    for path in sorted(p for p in engine.workspace.root.rglob("*") if p.is_file()):
        parts = path.relative_to(engine.workspace.root).parts
        if parts[0] != "trash" and not any(p.startswith(".") for p in parts):
            for at in [(), *walk(path)]:
                keys = at[1:] if path.suffix == ".jsonl" else at
                form = f"{form_of(engine, path)}:{'.'.join(map(str, keys))}"
                if form not in seen:
                    seen.add(form)
                    found.append((path, at))
    return found


def list_files(engine: Engine) -> list[Path]:
    """One file of every form."""
    return [path for path, at in list_values(engine) if not at]


def parse(text: str, path: Path) -> Any:
    """The value in a JSON file; of a log, a list of its lines."""
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def walk(path: Path) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON file; of a list, the first item; of a log, a line of each kind."""
    try:
        value = parse(path.read_text(encoding="utf-8"), path)
    except ValueError:
        return []
    found: list[tuple[Any, ...]] = []

    def visit(value: Any, at: tuple[Any, ...]) -> None:
        inside = value.items() if isinstance(value, dict) else ()
        for key, item in inside or enumerate(value[:1] if isinstance(value, list) else ()):
            found.append((*at, key))
            visit(item, (*at, key))

    if path.suffix != ".jsonl":
        visit(value, ())
        return found
    kinds = [line.get("kind") for line in value]
    for kind in dict.fromkeys(kinds):
        visit(value[kinds.index(kind)], (kinds.index(kind),))
    return found


def owner_of(engine: Engine, path: Path) -> tuple[str, str]:
    """Kind and id of the item that a file belongs to."""
    parts = path.relative_to(engine.workspace.root).parts
    if len(parts) == 1 or parts[1] in ("votes.jsonl", "lineup.json", "lineup.lock"):
        return WORKSPACE, {"votes.jsonl": "votes", "lineup.json": "queue", "base.json": "base"}.get(
            parts[-1], ""
        )
    return parts[0], parts[1].removesuffix(".json") if parts[0] in FILE_KINDS else parts[1]


def is_main_file(engine: Engine, path: Path) -> bool:
    """Whether an item cannot be read without this file."""
    parts = path.relative_to(engine.workspace.root).parts
    is_item = len(parts) == 2 and parts[0] in FILE_KINDS and path.suffix == ".json"
    return is_item or (len(parts) == 3 and path.name in RECORDS)


# ------------------------------------------------------------ what must hold after every damage


def show(engine: Engine, kind: str, item_id: str) -> None:
    """Formats a healthy item as the page and the terminal do."""
    if kind in ("adapters", "runs", "datasets", "mixes", "reports"):
        library.refresh(engine, kind, item_id)
    if kind == "datasets":
        data_views.render_dataset(engine.datasets.get(item_id), {})
    elif kind == "runs":
        live.metrics(engine, {"run": item_id})
        for event in engine.runs.events(item_id)[0]:
            cli_common._print_event(event)
        others = [r.id for r in engine.runs.list() if r.id != item_id][:1]
        comparison = engine.runs.compare([item_id, *others])
        run_views.render_comparison(comparison, False, {})
        run_views.plot_curves(comparison, True)
        json.dumps(engine.runs.get(item_id).to_json())
    elif kind == "grids":
        grid.open_grid(engine, item_id)
        engine.grids.csv(item_id)
    elif kind == "reports":
        evaluate.open_report(engine, item_id)
        reports.csv_path(engine.workspace, item_id)
    elif kind == "mixes":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a toast: an adapter has changed since it was saved
            mix_tab.load_mix(engine, item_id, [])
    elif kind == "maps":
        weight_map = LOADERS["maps"](engine.workspace, item_id)
        assert weight_map.summary() and isinstance(weight_map.points, list)
    elif kind == "adapters":
        engine.library.mix_warnings(engine.library.default_mixes()[-1])


def use(engine: Engine, kind: str, item_id: str) -> None:
    """Loads an item and what belongs to it. Only a StudioError may leave it."""
    uses: dict[str, list[Callable[[], Any]]] = {
        "datasets": [lambda: [engine.datasets.rows(item_id, s) for s in ("train", "val", "test")]],
        "runs": [
            lambda: engine.runs.history(item_id),
            lambda: runs.read_stop_request(engine.workspace, item_id),
        ],
        "adapters": [lambda: engine.library.verify(item_id)],
        "grids": [lambda: engine.grids.results(item_id)],
        "reports": [lambda: engine.evaluation.report_csv(item_id)],
    }
    for step in [lambda: LOADERS[kind](engine.workspace, item_id), *uses.get(kind, [])]:
        try:
            step()
        except StudioError as e:
            assert e.what and "\n" not in e.what


def check(engine: Engine, path: Path, before: dict[str, set[str]]) -> Damaged | None:
    """Checks what must hold while one file is damaged; returns how its item is reported, if it is."""
    kind, item_id = owner_of(engine, path)
    damaged = engine.library.damaged()
    assert {(d.kind, d.id) for d in damaged} <= {(kind, item_id)}, "only the damaged item is damaged"
    for name, method in list_methods(engine).items():
        gone = before[name] - ids_of(method)
        assert gone <= ({item_id} if damaged else set()), f"{name} lists everything else"
    check_item(engine, path)
    guide.poll(engine, {})
    runs_tab.show_queue(engine)
    engine.votes.csv()
    for verb in (cli_library.list_data, cli_library.list_adapters, cli_runs.list_runs):
        verb(engine, argparse.Namespace())
    cli_grids.show_grid(engine, argparse.Namespace(grid=""))
    return damaged[0] if damaged else None


def check_item(engine: Engine, path: Path) -> Damaged | None:
    """Uses the item that a file belongs to, and formats it if it can be read; returns how it is reported."""
    kind, item_id = owner_of(engine, path)
    damaged = [d for d in engine.library.damaged(kind) if d.id == item_id]
    if kind != WORKSPACE:
        use(engine, kind, item_id)
        if not damaged:
            show(engine, kind, item_id)
    if not damaged:
        return None
    (report,) = damaged
    relative = path.relative_to(engine.workspace.root).as_posix()
    assert report.file in (relative, f"{kind}/{item_id}") and report.reason and report.name
    return report


@contextlib.contextmanager
def damaging(engine: Engine, path: Path) -> Iterator[bytes]:
    """Yields the content of a file that the block damages; puts back its item as it was."""
    kind, item_id = owner_of(engine, path)
    item = path if kind == WORKSPACE else engine.workspace.path(kind, item_id)
    stored = {p: p.read_bytes() for p in ([item] if item.is_file() else item.rglob("*")) if p.is_file()}
    try:
        yield stored[path]
    finally:
        if not item.exists() or item.is_dir() == (item in stored):
            delete(item)
        for file in [
            p for p in item.rglob("*") if p not in stored and not any(p in s.parents for s in stored)
        ]:
            delete(file)
        for file, content in stored.items():
            if not file.is_file() or file.read_bytes() != content:
                delete(file) if file.exists() else None
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        engine.library.empty_trash()


def delete_item(engine: Engine, path: Path) -> None:
    """Deletes the damaged item; nothing is damaged then."""
    kind, item_id = owner_of(engine, path)
    engine.library.delete_damaged(kind, item_id)
    assert engine.library.damaged() == []
    assert kind == WORKSPACE or item_id not in engine.workspace.ids(kind)


@pytest.fixture(scope="module")
def before(engine: Engine) -> dict[str, set[str]]:
    """What the lists hold while nothing is damaged."""
    assert engine.library.damaged() == []
    return {name: ids_of(method) for name, method in list_methods(engine).items()}


def test_every_kind_of_item_is_in_the_workspace_and_in_a_list(
    engine: Engine, before: dict[str, set[str]]
) -> None:
    assert set(LOADERS) == set(KINDS) and all(engine.workspace.ids(kind) for kind in KINDS)
    assert {"runs.list", "library.adapters", "library.mixes", "datasets.list", "grids.list",
            "evaluation.reports", "queue.list", "library.mixable_adapters"} <= set(before)  # fmt: skip
    assert len(list_files(engine)) > 30 and len(list_values(engine)) > 300
    for kind in KINDS:
        for item_id in engine.workspace.ids(kind):
            show(engine, kind, item_id)


def test_a_file_that_is_cut_off_or_foreign_costs_one_item(
    engine: Engine, before: dict[str, set[str]]
) -> None:
    missed = []
    for path in list_files(engine):
        for name, damage in RAW.items():
            with damaging(engine, path) as content:
                path.write_bytes(damage(content))
                report = check_item(engine, path)
                if name == "a half":
                    check(engine, path, before)
                is_record = is_main_file(engine, path)
                if report is None and is_record and name != "without its end":
                    missed.append(f"{path.name} {name}")
                if report is not None:
                    delete_item(engine, path)
    assert not missed
    assert engine.library.damaged() == []


def test_a_folder_in_place_of_a_file_and_a_lost_file_cost_one_item(
    engine: Engine, before: dict[str, set[str]]
) -> None:
    for path in list_files(engine):
        if path.name == "owner.lock" and path.parent == engine.workspace.root:
            continue  # held by this process
        is_item = path.parent.name in FILE_KINDS and path.suffix == ".json"
        for is_folder in (False, True):
            if is_item and not is_folder:
                continue  # the item is deleted, not damaged
            with damaging(engine, path):
                path.unlink()
                if is_folder:
                    path.mkdir()
                    (path / "file").touch()
                report = check(engine, path, before)
                if is_main_file(engine, path) and (is_folder or path.name != "sent.json"):
                    assert report is not None
                if report is not None:
                    delete_item(engine, path)
    assert engine.library.damaged() == []


def test_a_file_in_place_of_the_folder_of_an_item_costs_one_item(
    engine: Engine, before: dict[str, set[str]]
) -> None:
    for kind in set(KINDS) - set(FILE_KINDS):
        path = engine.workspace.path(kind, engine.workspace.ids(kind)[0])
        with damaging(engine, next(p for p in path.rglob("*") if p.is_file())):
            delete(path)
            path.write_text("a file", encoding="utf-8")
            report = check(engine, path, before)
            assert report is not None and report.file == f"{kind}/{path.name}"
            delete_item(engine, path)
    assert engine.library.damaged() == []


def change(path: Path, at: tuple[Any, ...], text: str | None) -> str:
    """The text of a JSON file or log with another value at a place; None removes the key."""
    value = parse(path.read_text(encoding="utf-8"), path)
    mark, holder = "THE MARK OF THE TEST", value
    for key in at[:-1]:
        holder = holder[key]
    if text is None:
        del holder[at[-1]]
    else:
        holder[at[-1]] = mark
    lines = value if path.suffix == ".jsonl" else [value]
    return "".join(json.dumps(line).replace(json.dumps(mark), text or "") + "\n" for line in lines)


@pytest.mark.slow
def test_a_wrong_or_missing_value_under_any_key_costs_one_item(
    engine: Engine, before: dict[str, set[str]]
) -> None:
    count = reported = 0
    for i, (path, at) in enumerate((p, at) for p, at in list_values(engine) if at):
        for j, text in enumerate((None, *WRONG)):
            if (len(at) > 1 or not is_main_file(engine, path)) and (i + j) % 5:
                continue  # inside of a value, every fifth damage: the next keys get the others
            with damaging(engine, path):
                path.write_text(change(path, at, text), encoding="utf-8")
                try:
                    report = check_item(engine, path)
                    if count % 50 == 0:
                        check(engine, path, before)
                except BaseException as e:
                    raise AssertionError(f"{path.name}: {'.'.join(map(str, at))} = {text}") from e
            count, reported = count + 1, reported + (report is not None)
    assert count > 1000 and reported > 0.4 * count


# ------------------------------------------------------------ what else must hold


def test_keys_of_a_newer_version_are_tolerated_and_kept(engine: Engine, before: dict[str, set[str]]) -> None:
    newer = {"newer": {"a": [1, None]}}
    for path in list_files(engine):
        if not is_main_file(engine, path):
            continue
        with damaging(engine, path) as content:
            path.write_text(json.dumps({**json.loads(content), **newer}), encoding="utf-8")
            assert check(engine, path, before) is None
            kind, item_id = owner_of(engine, path)
            if kind in ("adapters", "datasets", "mixes", "runs") and path.name != "adapter_config.json":
                engine.library.rename(kind, item_id, "Another name")
            elif kind == "grids":
                grids.rename(engine.workspace, item_id, "Another name")
            assert json.loads(path.read_text(encoding="utf-8"))["newer"] == newer["newer"]


def test_a_run_with_a_setting_of_a_newer_version_is_listed_and_kept(engine: Engine) -> None:
    path = engine.workspace.path("runs", "killed-df78", "run.json")
    with damaging(engine, path) as content:
        record = json.loads(content)
        record["spec"]["newer"] = 1
        path.write_text(json.dumps(record), encoding="utf-8")
        run = engine.runs.get("killed-df78")
        assert run.unknown_settings == {"newer": 1} and not run.resumable
        with pytest.raises(RunError, match="cannot be resumed"):
            engine.runs.resume(run.id)
        runs.update(engine.workspace, run, error="noted")
        assert json.loads(path.read_text(encoding="utf-8"))["spec"]["newer"] == 1
        del record["spec"]["newer"], record["spec"]["rank"]
        path.write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(DamagedRecord, match="setting rank is missing"):
            engine.runs.get(run.id)


def test_a_damaged_line_of_votes_costs_one_vote(engine: Engine) -> None:
    path = engine.workspace.votes_path
    standing = {s.name: s.votes for s in engine.votes.tally()}
    assert standing == {"Both": 4, "Reports": 4, "Base": 4}
    with damaging(engine, path) as content:
        lines = content.splitlines(keepends=True)
        kept = next(i for i, line in enumerate(lines) if b'"vote"' in line and b"withdrawn" not in line)
        event = json.loads(lines[kept])
        event["shown"][0]["weights"] = {"a": "1"}
        path.write_bytes(b"".join([*lines, b"{\n", json.dumps(event | {"id": "new"}).encode() + b"\n"]))
        assert {s.name: s.votes for s in engine.votes.tally()} == standing
        (report,) = engine.library.damaged(WORKSPACE)
        assert (report.id, report.file) == ("votes", "mixes/votes.jsonl") and "2 lines" in report.reason
        engine.library.delete_damaged(WORKSPACE, "votes")
        assert path.read_bytes() == content and engine.library.damaged(WORKSPACE) == []


def test_a_damaged_record_in_the_trash_costs_its_name_only(engine: Engine) -> None:
    item = engine.workspace.path("mixes", "both-058c")
    content = item.read_bytes()
    trashed = engine.library.delete("mixes", "both-058c")
    record = engine.workspace.root / "trash" / trashed.entry / "entry.json"
    for text in ("", "{", "[]", "\udcff", '{"name": 1, "deleted": 1}', '{"name": "a", "deleted": 1e300}',
                 '{"name": "\\ud800", "deleted": 1}', '{"name": "a", "deleted": NaN}'):  # fmt: skip
        record.write_text(text, encoding="utf-8", errors="surrogateescape")
        assert [i.id for i in engine.library.trash()] == ["both-058c"]
        json.dumps(library.refresh(engine, "trash", trashed.entry)[0], ensure_ascii=False).encode()
    engine.library.restore(trashed.entry)
    assert item.read_bytes() == content


def test_the_studio_starts_trains_and_measures_beside_damaged_items(
    tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    root = tmp_path / "ws"
    shutil.copytree(STORED, root)
    for path in root.rglob("*.json*"):
        path.write_bytes(path.read_bytes()[:20] + b"\n")
    for lock in ("owner.lock", "runs/lineup.lock"):
        (root / lock).unlink()
        (root / lock).mkdir()
    with Engine(root, base=str(tiny_base), quantization="none", device="cpu") as made:
        names = {(d.kind, d.id) for d in made.library.damaged()}
        items = {(kind, i) for kind in KINDS for i in made.workspace.ids(kind)}
        assert names == items | {(WORKSPACE, i) for i in ("votes", "queue", "base")}
        build(made)
        data = made.datasets.import_files([corpus], "Notes")
        spec = TrainSpec(
            name="Notes", dataset=data.id, max_steps=2, batch_size=2, accumulation=1, max_length=32, rank=2
        )
        run = made.runs.wait(made.runs.start(spec))
        assert run.status is RunStatus.DONE, run.error
        mix = made.library.save_mix("Mine", {run.adapter: 0.5}).mix
        last = made.evaluation.measure([mix], data.id, "test", general=False, max_length=32).last()
        assert [r.id for r in made.evaluation.reports()] == [last.report]
        made.library.delete("reports", last.report)
        assert [d.id for d in made.datasets.list()] == [data.id]
        for kind, item_id in names:
            made.library.delete_damaged(kind, item_id)
        assert made.library.damaged() == []
        assert [a.id for a in made.library.adapters()] == [run.adapter]


def test_a_named_pipe_in_place_of_a_file_costs_one_item(engine: Engine, before: dict[str, set[str]]) -> None:
    """Opening a named pipe waits for a writer, so a list that opened it would never end."""
    for name in ("runs/killed-df78/run.json", "runs/killed-df78/events.jsonl", "mixes/both-058c.json",
                 "adapters/answers-dd31/adapter_model.safetensors"):  # fmt: skip
        path = engine.workspace.root / name
        with damaging(engine, path):
            path.unlink()
            os.mkfifo(path)
            assert [(d.file, d.reason) for d in engine.library.damaged()] == [(name, "it is not a file")]
            assert ids_of(engine.runs.list) | {path.parent.name} >= before["runs.list"]
            path.unlink()
