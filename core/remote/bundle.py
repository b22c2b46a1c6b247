"""Runs that are trained on another machine: packed as one file, handed to a command template, and trained there.

Knows what a bundle and a result hold. Knows nothing of what of a result is believed (`core/collecting.py`), nor of how
training works: the other machine opens an engine on a workspace of its own, and queues the run like any other.

    pack ──> bundle.zip ── template ──> run, elsewhere ──> result.zip ──> collect
      └ exports/<run id>/sent.json ............. what was asked for ............┘

The ids of the run, its adapter, its dataset and the adapter below are the same everywhere, because the checksum of the
settings counts them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.datasets import Dataset, load_dataset, verify_dataset
from core.engine import Engine
from core.errors import BaseModelError, Busy, NotFound, RunError, SpecError
from core.remote import command_template
from core.spec.training import QUANTIZATIONS, RunStatus, TrainSpec
from core.store import adapters, archives, grids, runs
from core.store.runs import Run
from core.store.workspace import ID, Workspace, make_id, read_json, write_json
from core.train import launcher

FORMAT = 1
BUNDLE, RESULT, SENT = "bundle.json", "result.json", "sent.json"
_ID, _FILE = r"[a-z0-9][a-z0-9-]{0,63}", r"\w[\w.-]{0,199}"
IN_BUNDLE = re.compile(
    rf"bundle\.json|datasets/{_ID}/(?:rows\.jsonl|dataset\.json|(?:splits|source)/{_FILE})|adapters/{_ID}/{_FILE}",
    re.ASCII,
)
IN_RESULT = re.compile(rf"result\.json|run\.json|events\.jsonl|adapters/{_ID}/{_FILE}", re.ASCII)
PATIENCE = 30 * 86400.0
PACK_AGAIN = "Pack the run again, or give the file that was packed."


@dataclass(frozen=True)
class Bundle:
    """What is asked of another machine.

    Attributes:
        run, adapter: ids that they will have in the workspace that asked.
        key: `grids.spec_checksum` of the spec.
        base, fingerprint, quantization: what it is trained on, and how that is meant to be loaded.
        data: dataset id -> sha256, of all that it reads.
        below: id and sha256 of the adapter that it is trained on top of, or nothing.
        extra: what the run's own record says besides, such as its grid; stays here.
    """

    run: str
    adapter: str
    spec: TrainSpec
    key: str
    base: str
    fingerprint: str
    quantization: str
    data: dict[str, str]
    below: dict[str, str] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.__dict__, "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, raw: Any) -> Bundle:
        """Reads a description, which may come from elsewhere.

        Raises:
            SpecError: it is none, or its checksum is not that of its settings.
        """
        try:
            made = cls(
                **{f.name: raw[f.name] for f in dataclasses.fields(cls) if f.name != "spec"},
                spec=TrainSpec.from_json(raw["spec"]),
            )
            texts = [
                made.run,
                made.adapter,
                made.key,
                made.base,
                made.fingerprint,
                made.quantization,
                *made.data.values(),
                *made.below.values(),
            ]
            ids = [made.run, made.adapter, *made.data, *([made.below["id"]] if made.below else [])]
            sound = (
                all(isinstance(t, str) for t in texts)
                and all(ID.fullmatch(i) for i in ids)
                and made.quantization in QUANTIZATIONS
            )
        except (KeyError, TypeError, AttributeError) as e:
            raise SpecError(
                f"The bundle's description cannot be read ({type(e).__name__}: {e}).", PACK_AGAIN
            ) from e
        if not sound or made.key != grids.spec_checksum(made.spec):
            raise SpecError("The bundle's settings are not those of its checksum.", PACK_AGAIN)
        return made


# --- here: what is asked for


def pack(
    workspace: Workspace,
    run: str | TrainSpec,
    out: Path | None,
    base: str = "embedded",
    quantization: str = "auto",
    extra: dict[str, Any] | None = None,
) -> Bundle:
    """Writes one file with everything that a run needs but the base; it is trained from its beginning.

    Args:
        run: the id of a run of this workspace that has not finished, or the settings of a new one.
        out: where; None is beside our own record of what was asked for.
        base: of a new run. quantization: how the base is to be loaded there.

    Raises:
        Busy: the run is alive. RunError: it has finished. StudioError: what it needs is not here, or damaged.
    """
    known = runs.load(workspace, run) if isinstance(run, str) else None
    if known is not None and known.status.is_alive:
        raise Busy(f"The run {known.name!r} is {known.status.value}.", "Cancel or stop it first.")
    if known is not None and known.status is RunStatus.DONE:
        raise RunError(f"The run {known.name!r} has finished.", "There is nothing left to train.")
    spec = known.spec if known is not None else run
    assert isinstance(spec, TrainSpec)
    if known is not None:
        base, extra = known.base, {k: known.extra[k] for k in ("grid", "cell") if k in known.extra}
    base, fingerprint = _base(base)
    if known is not None and known.base_fingerprint not in ("", fingerprint):
        raise RunError(f"The run {known.name!r} began on other weights of {base!r}.", "Start a new run.")
    data, below = _needed(workspace, spec)
    finished = {r for r in workspace.ids("runs") if runs.load(workspace, r).status is RunStatus.DONE}
    before = known or next(
        (b for b in sent(workspace) if b.key == grids.spec_checksum(spec) and b.run not in finished), None
    )  # asked twice, it is the same run
    bundle = Bundle(
        before.id if isinstance(before, Run) else before.run if before else make_id(spec.name),
        before.adapter if before else make_id(spec.name),
        spec, grids.spec_checksum(spec), base, fingerprint, quantization, {d.id: d.sha256 for d in data},
        {"id": below.id, "sha256": below.sha256} if below else {}, dict(extra or {}),
    )  # fmt: skip
    described = {**bundle.to_json(), "extra": {}}
    folders = [("datasets", d.id) for d in data] + ([("adapters", below.id)] if below else [])
    files = {name: path for kind, item in folders for name, path in _files(workspace, kind, item)}
    archives.write(
        out or workspace.path("exports", bundle.run, "bundle.zip"),
        {BUNDLE: json.dumps(described).encode(), **files},
    )
    write_json(workspace.path("exports", bundle.run, SENT), bundle.to_json())
    return bundle


def _base(name: str) -> tuple[str, str]:
    """(a base's name, absolute where it is a folder; its fingerprint), from its files alone.

    Raises:
        BaseModelError: they are not on this machine.
    """
    from core.model.base import fingerprint, folder_of, locate

    source, local = locate(name)
    if not local:
        raise BaseModelError(
            f"The base {name!r} is not on this machine, and what is trained elsewhere is known by its fingerprint.",
            "Download it first.",
        )
    return str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name, fingerprint(
        folder_of(source, local)
    )


def _needed(workspace: Workspace, spec: TrainSpec) -> tuple[list[Dataset], adapters.Adapter | None]:
    """The datasets that a run reads and the adapter below it, all verified."""
    names = [spec.dataset, *([spec.replay_dataset] if spec.replay_share and spec.replay_dataset else [])]
    for name in dict.fromkeys(names):
        verify_dataset(workspace, name)
    if spec.stack_on:
        adapters.verify(workspace, spec.stack_on)
    return [load_dataset(workspace, n) for n in dict.fromkeys(names)], adapters.load(
        workspace, spec.stack_on
    ) if spec.stack_on else None


def _files(workspace: Workspace, kind: str, item: str) -> Iterator[tuple[str, Path]]:
    folder = workspace.find(kind, item)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield f"{kind}/{item}/{path.relative_to(folder).as_posix()}", path


def sent(workspace: Workspace) -> list[Bundle]:
    """Everything that was packed here, oldest first."""
    return [
        asked_for(workspace, i)
        for i in workspace.ids("exports")
        if workspace.path("exports", i, SENT).is_file()
    ]


def asked_for(workspace: Workspace, run_id: str) -> Bundle:
    """What was asked for under a run's id.

    Raises:
        NotFound: nothing was.
    """
    path = workspace.path("exports", run_id, SENT)
    if not path.is_file():
        raise NotFound(
            f"The run {run_id!r} was not packed in this workspace.",
            "Collect a result in the workspace that its bundle comes from.",
        )
    return Bundle.from_json(read_json(path))


@dataclass(frozen=True)
class Errand:
    """A cell that was handed to a template.

    Attributes:
        said: what the template's command printed.
    """

    cell: int
    name: str
    bundle: Path
    result: Path
    said: str


def send(
    engine: Engine, grid_id: str, template: str, quantization: str = "auto", again: bool = False
) -> Iterator[Errand]:
    """Packs a bundle for every cell that nobody has run, and runs the template with it, one after the other.

    Args:
        again: also for cells that were handed over before, and have not come back.

    Raises:
        SpecError: the template, or its program is not there. RunError: its command failed; the cells before it are on their way.
    """
    command_template.split(template)
    handed = {b.key for b in sent(engine.workspace) if b.extra.get("handed")}
    rows = sorted(engine.grids.results(grid_id).rows, key=lambda r: r.cell.index)
    for row in rows:
        cell, run = row.cell, row.run
        if (run is not None and (run.status.is_alive or (row.has_ended and row.adapter))) or (
            cell.key in handed and not again
        ):
            continue
        engine.runs.check(cell.spec)
        asked = (
            run.id if run is not None and run.status is not RunStatus.DONE else cell.spec
        )  # finished, and its adapter deleted: a new run
        made = pack(
            engine.workspace,
            asked,
            None,
            engine.bases.current().name,
            quantization,
            {"grid": grid_id, "cell": cell.index},
        )
        bundle, result = (engine.workspace.path("exports", made.run, n) for n in ("bundle.zip", "result.zip"))
        values = {
            "bundle": str(bundle),
            "result": str(result),
            "name": cell.spec.name.lstrip("-"),
        }  # a name is no option
        said = _start(command_template.fill(template, command(bundle, result), values))
        write_json(
            bundle.with_name(SENT),
            dataclasses.replace(made, extra={**made.extra, "handed": time.time()}).to_json(),
        )
        yield Errand(cell.index, cell.spec.name, bundle, result, said)


def command(bundle: Path, result: Path) -> list[str]:
    """What {command} stands for."""
    return [sys.executable, "-m", "core", "bundle", "run", str(bundle), "-o", str(result)]


def _start(arguments: list[str]) -> str:
    """Runs a template that is filled in, without a shell; returns what it printed."""
    try:
        done = subprocess.run(
            arguments,
            env=launcher.filter_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except (OSError, ValueError) as e:
        raise SpecError(
            f"{arguments[0]!r} could not be started ({e}).",
            "A template begins with a program of this machine.",
        ) from e
    if done.returncode:
        raise RunError(
            f"The template's command ended with code {done.returncode}: {done.stdout.strip()[-500:]!r}.",
            "Mend it and send again: only what is left is sent.",
        )
    return done.stdout


# --- elsewhere: training it


def run(
    path: Path,
    out: Path,
    base: str = "",
    quantization: str = "",
    follow: Callable[[Engine, str], Any] | None = None,
) -> Run:
    """Trains what a bundle asks for, in a workspace of its own beside the result, and writes the result.

    Called again after it was cut off, it goes on from the newest checkpoint. The workspace is removed once the result is there.

    Args:
        base, quantization: in the place of the bundle's; the base has to have the same weights.
        follow: waits until a run has ended; None waits in silence.

    Raises:
        DataError, SpecError: the bundle. BaseModelError: the base is not here, or another one. RunError: the run did not finish.
    """
    place = out.with_name(out.name + ".workspace")
    bundle = unpack(path, place)
    with Engine(place, base or bundle.base, quantization or bundle.quantization) as engine:
        info = engine.bases.current(wait=True)
        if info.error:
            raise BaseModelError(info.error, "Give --base: a folder on this machine, or a Hub id.")
        if info.fingerprint != bundle.fingerprint:
            raise BaseModelError(
                f"The base {info.name!r} has other weights than {bundle.base!r}, which was asked for.",
                "Give --base with a copy of that one.",
            )
        if engine.runs.get(bundle.run).status is not RunStatus.DONE:
            engine.runs.check(bundle.spec)
            engine.runs.resume(bundle.run)
            follow(engine, bundle.run) if follow else engine.runs.wait(bundle.run, PATIENCE)
        ended = engine.runs.get(bundle.run)
        if ended.status is not RunStatus.DONE:
            raise RunError(
                f"The run {ended.name!r} did not finish ({ended.status.value}). {ended.error}".strip(),
                "Run the bundle again: it goes on where it ended.",
            )
        adapters.verify(engine.workspace, bundle.adapter)
        kept = runs.folder(engine.workspace, bundle.run)
        told = {
            "format": FORMAT,
            "run": bundle.run,
            "settings": grids.spec_checksum(ended.spec),
            "data": bundle.data,
            "fingerprint": ended.base_fingerprint,
        }
        files = {
            "run.json": kept / "run.json",
            "events.jsonl": kept / "events.jsonl",
            **dict(_files(engine.workspace, "adapters", bundle.adapter)),
        }
        archives.write(out, {RESULT: json.dumps(told).encode(), **files})
    shutil.rmtree(place, ignore_errors=True)
    return ended


def unpack(path: Path, place: Path) -> Bundle:
    """Makes a workspace of a bundle, with its run waiting to begin; one that is there already, from an attempt before, is taken up.

    Raises:
        DataError, SpecError, StudioError: it is damaged, or no bundle.
    """
    building = place.with_name(f".{place.name}.partial")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        archives.extract(path, building, IN_BUNDLE)
        bundle = Bundle.from_json(read_json(building / BUNDLE))
        if place.exists():
            if (place / BUNDLE).is_file() and Bundle.from_json(read_json(place / BUNDLE)) == bundle:
                return bundle
            raise Busy(
                f"{place.name} is there already, and belongs to another bundle.",
                "Give another -o, or remove that folder.",
            )
        workspace = Workspace(building)
        data, below = _needed(workspace, bundle.spec)
        if {d.id: d.sha256 for d in data} != bundle.data or (
            below.sha256 if below else ""
        ) != bundle.below.get("sha256", ""):
            raise SpecError(
                "The bundle holds other data, or another adapter below, than it says.", PACK_AGAIN
            )
        runs.put(workspace, record(bundle, RunStatus.QUEUED))
        building.replace(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return bundle


def record(bundle: Bundle, status: RunStatus, created: float | None = None) -> Run:
    """The run of a bundle, as its record says it."""
    spec, now = bundle.spec, time.time() if created is None else created
    main = bundle.data[spec.dataset]
    return Run(
        bundle.run,
        spec.name,
        spec.kind,
        status,
        spec,
        bundle.adapter,
        now,
        bundle.base,
        bundle.fingerprint,
        main,
        extra=bundle.extra,
    )
