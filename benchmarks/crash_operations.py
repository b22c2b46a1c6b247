"""The operations that `benchmarks.crashes` kills: every way in which a workspace is changed without a model.

An operation is a generator. It chooses its items with the generator of random numbers that it receives, and
yields after each of its commits, so that the states between two commits are known.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from core.engine import Engine, experiment_work, experiments
from core.engine.experiment_address import AddressAnswer
from core.engine.experiment_questions import AskedQuestion
from core.errors import NotFound
from core.remote import pack as packing
from core.remote.bundle import RESULT_FILE
from core.remote.collect import collect
from core.spec.experiment import ExperimentRow, ExperimentSpec
from core.spec.training import RunStatus, TrainSpec
from core.store import adapters, archives, backup, bundles, grids, reports, runs, votes
from core.store import experiments as experiment_store
from core.store.workspace import Workspace

FINGERPRINT = "f" * 64
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0,
    "target_modules": ["q_proj"], "bias": "none",
}  # fmt: skip
BACKUP = "backup.zip"
FOREIGN = "foreign.zip"
HEAD = "base_model.model.lm_head.weight"


@dataclass(frozen=True)
class Scene:
    """What an operation works on.

    Attributes:
        folder: holds the workspace `ws`, and the files that operations read and write beside it.
        after_commit: called after a commit inside of one call of the engine.
    """

    engine: Engine
    folder: Path
    rng: random.Random
    after_commit: Callable[[], None] = lambda: None

    @property
    def workspace(self) -> Workspace:
        return self.engine.workspace

    def choose(self, kind: str) -> str:
        """The id of an item.

        Raises:
            NotFound: the workspace has no item of this kind.
        """
        ids = sorted(self.workspace.ids(kind))
        if not ids:
            raise NotFound(f"The workspace has no {kind}.")
        return self.rng.choice(ids)

    def name(self) -> str:
        return f"Item {self.rng.randrange(10**6)}"

    def spec(self, **changes: Any) -> TrainSpec:
        settings: dict[str, Any] = {"kind": "domain", "name": self.name(), "dataset": self.choose("datasets")}
        return TrainSpec(**{**settings, "max_steps": 2, "rank": self.rng.choice((2, 4, 8)), **changes})


Operation = Callable[[Scene], Iterator[None]]


def write_weights(path: Path, seed: int) -> None:
    """Writes the tensors of a rank-2 adapter on two layers of a tiny Llama."""
    rng = np.random.default_rng(seed)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (2, 64), "B": (64, 2)}
    tensors = {
        name.format(layer, side): rng.normal(size=shape).astype(np.float32)
        for layer in (0, 1)
        for side, shape in shapes.items()
    }
    save_file(tensors, path)


def add_adapter(workspace: Workspace, adapter_id: str, name: str, seed: int, **metadata: Any) -> None:
    """Adds an adapter of random weights, or replaces the one of this id."""
    base = {"name": "tiny", "fingerprint": FINGERPRINT}
    adapters.add(
        workspace,
        adapter_id,
        name,
        lambda path: write_weights(path, seed),
        CONFIG,
        {"kind": "domain", "base": base, "results": {"train_loss": float(seed)}, **metadata},
    )


def make_workspace(folder: Path) -> None:
    """Makes the workspace `ws` with two items of every kind, and the files that operations read."""
    texts = [f"Lamp {i} is kept in room {i}." for i in range(40)]
    (folder / "corpus.txt").write_text("\n\n---\n\n".join(texts), encoding="utf-8")
    with Engine(folder / "ws", load=False) as engine:
        scene = Scene(engine, folder, random.Random(1))
        for number in (1, 2):
            engine.datasets.import_files([folder / "corpus.txt"], f"Corpus {number}", "domain")
            add_adapter(engine.workspace, f"adapter-000{number}", f"Adapter {number}", number)
            engine.library.save_mix(f"Mix {number}", {"adapter-0001": 1.0})
            for operation in (save_report, vote, start_run, define_grid, pack_bundle, run_experiment):
                for _ in operation(scene):
                    pass
    with Engine(folder / "ws", load=False) as engine:  # the runs of the first one are interrupted now
        scene = Scene(engine, folder, random.Random(2))
        for kind in ("adapters", "mixes", "datasets"):
            for _ in delete(scene, kind):
                pass
        engine.datasets.import_files([folder / "corpus.txt"], "Corpus 3", "domain")
        add_adapter(engine.workspace, "adapter-0003", "Adapter 3", 3)
        engine.library.save_mix("Mix 3", {"adapter-0003": 1.0})
        make_result(scene)
        make_foreign(folder)


def make_foreign(folder: Path) -> None:
    """Writes an adapter as another tool saves it, with a trained head, into a zip file."""
    weights = folder / "foreign.safetensors"
    write_weights(weights, 77)
    head = np.random.default_rng(78).normal(size=(384, 64)).astype(np.float32)
    save_file({**load_file(weights), HEAD: head}, weights)
    with zipfile.ZipFile(folder / FOREIGN, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(weights, "run/adapter_model.safetensors")
        z.writestr("run/adapter_config.json", json.dumps({**CONFIG, "modules_to_save": ["lm_head"]}))
        z.writestr("run/training_args.bin", b"not read")
    weights.unlink()


def describe_tiny_base() -> Any:
    """What an import compares with: the tiny Llama of `write_weights`, without loading it."""
    import torch

    from core.importing.base_view import BaseLayer, BaseView

    linear = BaseLayer("Linear", 64, 64)
    return BaseView(
        name="tiny",
        fingerprint=FINGERPRINT,
        model_type="llama",
        task_type="CAUSAL_LM",
        fan_in_fan_out=False,
        quantization="none",
        layers={
            **{f"model.layers.{i}.self_attn.q_proj": linear for i in (0, 1)},
            "lm_head": BaseLayer("Linear", 384, 64),
        },
        vocabulary=384,
        embedding="model.embed_tokens",
        head="lm_head",
        is_tied=False,
        template="",
        heads=4,
        key_value_heads=2,
        stop_tokens=("</s>",),
        vocabulary_texts=frozenset(("</s>",)),
        read_weight=lambda layer: torch.zeros(384, 64),
    )


def make_result(scene: Scene) -> None:
    """Writes result.zip, as if another machine had trained one of the bundles."""
    bundle = bundles.list_bundles(scene.workspace)[0]
    other = Workspace(scene.folder / "other")
    spec, data = bundle.spec, bundle.data_sha256[bundle.spec.dataset]
    add_adapter(
        other,
        bundle.adapter_id,
        spec.name,
        9,
        run=bundle.run_id,
        dataset={"id": spec.dataset, "name": "Corpus", "sha256": data},
    )
    runs.put(other, bundle.to_run(RunStatus.DONE))
    description = {
        "format": 1,
        "run": bundle.run_id,
        "settings": grids.spec_checksum(spec),
        "data": bundle.data_sha256,
        "fingerprint": bundle.base_fingerprint,
    }
    folder = other.path("adapters", bundle.adapter_id)
    files = {f"adapters/{bundle.adapter_id}/{p.name}": p for p in sorted(folder.iterdir())}
    record = runs.folder(other, bundle.run_id)
    members = {"run.json": record / "run.json", "events.jsonl": record / "events.jsonl", **files}
    archives.write(scene.folder / "result.zip", {RESULT_FILE: json.dumps(description).encode(), **members})
    shutil.rmtree(other.root)


# --- new items


def import_dataset(scene: Scene) -> Iterator[None]:
    scene.engine.datasets.import_files([scene.folder / "corpus.txt"], scene.name(), "domain")
    yield


def save_mix(scene: Scene) -> Iterator[None]:
    scene.engine.library.save_mix(scene.name(), {scene.choose("adapters"): 0.5})
    yield


def save_report(scene: Scene) -> Iterator[None]:
    row = {"name": "Base", "mix": "base", "weights": {}, "perplexity": 2.5}
    reports.save(scene.workspace, "corpus", scene.name(), "test", "tiny", 1.5, [row])
    yield


def new_adapter(scene: Scene) -> Iterator[None]:
    add_adapter(scene.workspace, f"new-{scene.rng.randrange(10**6)}", scene.name(), scene.rng.randrange(100))
    yield


def import_adapter(scene: Scene) -> Iterator[None]:
    imports = scene.engine.adapter_imports
    imports._describe_base = describe_tiny_base  # type: ignore[method-assign]  # no base is loaded
    imports.add(str(scene.folder / FOREIGN), scene.name(), ["use-alone"])
    yield


def define_grid(scene: Scene) -> Iterator[None]:
    scene.engine.grids.define(scene.spec(), {"rank": [2, 4]}, scene.name())
    yield


def vote(scene: Scene) -> Iterator[None]:
    stamps = [{"mix": name, "weights": {}, "adapters": {}, "base": "tiny"} for name in "AB"]
    scene.engine.votes.cast("Where is the lamp?", stamps, scene.rng.randrange(2))
    yield


def run_experiment(scene: Scene) -> Iterator[None]:
    """Continues an experiment that a kill has left, or runs a new one; an address answers its questions."""
    commits = ("create", "append_line", "delete")
    before = {name: getattr(experiment_store, name) for name in commits}
    read, ask = experiments.read_questions, experiment_work.ask_address
    experiments.read_questions = experiment_work.read_questions = _list_questions
    experiment_work.ask_address = _answer_at_address
    for name in commits:
        setattr(experiment_store, name, _announce(before[name], scene))
    try:
        known = scene.engine.experiments
        left = [e.id for e in known.list() if len(known.cells(e.id)) < len(e.rows)]
        if left:
            known.resume(left[0])
        key = left[0] if left else known.start(_plan_experiment(scene))
        known.wait(key)
    finally:
        experiments.read_questions = experiment_work.read_questions = read
        experiment_work.ask_address = ask
        for name in commits:
            setattr(experiment_store, name, before[name])
    yield


def _plan_experiment(scene: Scene) -> ExperimentSpec:
    model = f"model-{scene.rng.randrange(10**6)}"  # no other experiment has its cells
    rows = [
        ExperimentRow(name, address="https://example.org/v1", model=f"{model}-{name}") for name in ("a", "b")
    ]
    return ExperimentSpec(scene.name(), scene.choose("datasets"), rows=tuple(rows), timed_questions=1)


def _list_questions(datasets: Any, spec: ExperimentSpec) -> list[AskedQuestion]:
    return [AskedQuestion(i, (), f"Where is lamp {i}?", f"In room {i}.") for i in range(3)]


def _answer_at_address(row: ExperimentRow, key: str, messages: Any, limit: int) -> AddressAnswer:
    return AddressAnswer(f"{row.model}: {messages[-1]['content']}", 4, 0.5, "end")


# --- changed items


def rename_item(scene: Scene, kind: str) -> Iterator[None]:
    scene.engine.library.rename(kind, scene.choose(kind), scene.name())
    yield


def add_results(scene: Scene) -> Iterator[None]:
    figures = {"recall": round(scene.rng.random(), 3)}
    adapters.add_results(scene.workspace, scene.choose("adapters"), figures, {"kept": {"q_proj": 1.0}})
    yield


def replace_adapter(scene: Scene) -> Iterator[None]:
    add_adapter(scene.workspace, scene.choose("adapters"), "Resumed", scene.rng.randrange(100, 200))
    yield


def withdraw_vote(scene: Scene) -> Iterator[None]:
    if cast := votes.load_all(scene.workspace):
        scene.engine.votes.withdraw(scene.rng.choice(cast).id)
    yield


# --- the queue


def start_run(scene: Scene) -> Iterator[None]:
    scene.engine.runs.start(scene.spec())
    yield


def start_grid(scene: Scene) -> Iterator[None]:
    create, set_runs = grids.create, grids.set_runs
    grids.create, grids.set_runs = _announce(create, scene), _announce(set_runs, scene)
    try:
        scene.engine.grids.start(scene.spec(), {"seed": [1, 2]}, scene.name())
    finally:
        grids.create, grids.set_runs = create, set_runs
    yield


def _announce(commit: Callable[..., Any], scene: Scene) -> Callable[..., Any]:
    def commit_and_announce(*args: Any, **kwargs: Any) -> Any:
        value = commit(*args, **kwargs)
        scene.after_commit()
        return value

    return commit_and_announce


def change_queue(scene: Scene) -> Iterator[None]:
    ids = []
    for _ in range(3):
        ids.append(scene.engine.runs.start(scene.spec()))
        yield
    scene.engine.queue.move(ids[2], "first")
    yield
    scene.engine.queue.cancel(ids[0])
    yield


def requeue(scene: Scene) -> Iterator[None]:
    scene.engine.runs.requeue()
    yield


# --- the trash


def delete(scene: Scene, kind: str) -> Iterator[None]:
    scene.engine.library.delete(kind, scene.choose(kind))
    yield


def restore(scene: Scene) -> Iterator[None]:
    entries = sorted(item.entry for item in scene.engine.library.trash())
    if entries:
        scene.engine.library.restore(scene.rng.choice(entries))
    yield


def empty_trash(scene: Scene) -> Iterator[None]:
    scene.engine.library.empty_trash()
    yield


# --- archives and other machines


def export_adapter(scene: Scene) -> Iterator[None]:
    scene.engine.library.archive(scene.choose("adapters"))
    yield


def pack_bundle(scene: Scene) -> Iterator[None]:
    identify = packing._identify_base
    packing._identify_base = lambda name: (name, FINGERPRINT)  # does not read the weights of a base
    try:
        packing.pack(scene.workspace, replace(scene.spec(), rank=scene.rng.randrange(9, 64)), None)
    finally:
        packing._identify_base = identify
    yield


def collect_result(scene: Scene) -> Iterator[None]:
    collect(scene.engine, scene.folder / "result.zip")
    yield


def pack_workspace(scene: Scene) -> Iterator[None]:
    backup.pack(scene.workspace.root, scene.folder / BACKUP)
    yield


def open_engine(scene: Scene) -> Iterator[None]:
    """Nothing: the kill falls into the start or the end of the engine."""
    time.sleep(0)
    yield


def _bind(operation: Callable[[Scene, str], Iterator[None]], kind: str) -> Operation:
    return lambda scene: operation(scene, kind)


RENAMED_KINDS = ("datasets", "adapters", "mixes", "runs", "grids")
DELETED_KINDS = ("datasets", "adapters", "mixes", "reports", "runs", "experiments")
# Operations whose modules take seconds to import -> what a process imports before it is forked.
HEAVY = {"import adapter": ("core.importing.conversion", "safetensors.torch")}
OPERATIONS: dict[str, Operation] = {
    **{f"rename {kind}": _bind(rename_item, kind) for kind in RENAMED_KINDS},
    **{f"delete {kind}": _bind(delete, kind) for kind in DELETED_KINDS},
    "import dataset": import_dataset,
    "import adapter": import_adapter,
    "save mix": save_mix,
    "save report": save_report,
    "new adapter": new_adapter,
    "define grid": define_grid,
    "run experiment": run_experiment,
    "vote": vote,
    "add results": add_results,
    "replace adapter": replace_adapter,
    "withdraw vote": withdraw_vote,
    "start run": start_run,
    "start grid": start_grid,
    "change queue": change_queue,
    "requeue": requeue,
    "restore": restore,
    "empty trash": empty_trash,
    "export adapter": export_adapter,
    "pack bundle": pack_bundle,
    "collect result": collect_result,
    "pack workspace": pack_workspace,
    "open": open_engine,
}


# --- what a workspace holds


def read_items(folder: Path) -> dict[str, Any]:
    """Every item of the workspace `ws`, verified: "kind/id" -> what a user sees of it.

    A run that is alive counts as interrupted, as after the death of its process.

    Raises:
        StudioError: an item is damaged.
    """
    workspace = Workspace(folder / "ws")
    items: dict[str, Any] = {}
    for kind in READERS:
        for item_id in workspace.ids(kind):
            items[f"{kind}/{item_id}"] = READERS[kind](workspace, item_id)
    for bundle in bundles.list_bundles(workspace):
        items[f"bundles/{bundle.run_id}"] = bundle.checksum
    for cast in votes.load_all(workspace):
        items[f"votes/{cast.id}"] = cast.chosen
    for item in workspace.trash():
        items[f"trash/{item.kind}/{item.id}"] = item.name
        if item.kind == "adapters":
            adapters.verify_folder(workspace.root / "trash" / item.entry / "item")
    archives_here = [*workspace.root.glob("exports/*/*.zip"), folder / BACKUP]
    for path in archives_here:
        if path.is_file():
            with zipfile.ZipFile(path) as z:
                items[f"archives/{path.relative_to(folder)}"] = z.testzip() or "complete"
    return items


def _read_dataset(workspace: Workspace, item_id: str) -> Any:
    from core.data.datasets import load_dataset, verify_dataset

    verify_dataset(workspace, item_id)
    dataset = load_dataset(workspace, item_id)
    return [dataset.name, dataset.sha256]


def _read_adapter(workspace: Workspace, item_id: str) -> Any:
    checks = adapters.verify(workspace, item_id)
    adapter = adapters.load(workspace, item_id)
    return [adapter.name, adapter.sha256, adapter.results, len(checks), adapter.metadata.get("kept")]


def _read_mix(workspace: Workspace, item_id: str) -> Any:
    from core.store import mixes

    mix = mixes.load(workspace, item_id)
    return [mix.name, mix.weights]


def _read_run(workspace: Workspace, item_id: str) -> Any:
    run = runs.load(workspace, item_id)
    status = RunStatus.INTERRUPTED if run.status.is_alive else run.status
    return [run.name, run.adapter, status.value, run.extra.cancelled]


def _read_grid(workspace: Workspace, item_id: str) -> Any:
    grid = grids.load(workspace, item_id)
    return [grid.name, grid.runs]


def _read_report(workspace: Workspace, item_id: str) -> Any:
    report = reports.load(workspace, item_id)
    text = workspace.path("reports", item_id, "report.csv").read_text(encoding="utf-8")
    return [report.rows, text]


def _read_experiment(workspace: Workspace, item_id: str) -> Any:
    """Its name, the answers of complete cells by row, and those of cells in progress by key."""
    experiment = experiment_store.load(workspace, item_id)
    cells = experiment_store.read_cells(workspace, item_id)
    done = {cell.key for cell in cells.values()}
    logs = workspace.path("experiments", item_id, "cells").glob("*.jsonl")
    begun = {
        path.stem: experiment_store.CellLog(workspace, item_id, path.stem).read()
        for path in logs
        if path.stem not in done
    }
    return [
        experiment.name,
        {row: [a.answer for a in cell.answers] for row, cell in cells.items()},
        {key: [sorted(a.answer for a in log[0].values()), len(log[2])] for key, log in begun.items()},
    ]


READERS: dict[str, Callable[[Workspace, str], Any]] = {
    "datasets": _read_dataset,
    "adapters": _read_adapter,
    "mixes": _read_mix,
    "runs": _read_run,
    "grids": _read_grid,
    "reports": _read_report,
    "experiments": _read_experiment,
}
