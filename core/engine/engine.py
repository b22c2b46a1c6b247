"""The object that every door opens: thin verbs over the rooms below.

Knows who is asked for what and in which order; the work itself is done below. Holds all shared state
of a studio. Safe to call from any thread: whatever needs the model goes through the worker. The model
rooms are imported on the worker's thread, so that a page can be painted before torch is there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data import datasets
from core.data.datasets import Dataset, Preview
from core.data.samples import Samples
from core.engine.analysis import Composer
from core.engine.bases import Bases
from core.engine.chat import Answers
from core.engine.grids import Planner
from core.engine.mix_warnings import departures
from core.engine.resident_base import USUAL, BaseInfo, Residence
from core.engine.runs import Conductor, Waiting
from core.engine.worker import Stream, Worker
from core.errors import Busy, NotFound, SpecError
from core.spec.mix import Mix, Sampling
from core.spec.settings import SEED
from core.spec.training import Launch, TrainSpec
from core.store import adapters as adapter_store
from core.store import mixes, reports, votes
from core.store.adapters import Adapter
from core.store.csv_tables import plain_csv
from core.store.mixes import SavedMix
from core.store.reports import Report
from core.store.runs import Run
from core.store.votes import Standing, Vote
from core.store.workspace import Claim, Workspace
from core.train import launcher

if TYPE_CHECKING:
    from core.evaluate.measure import Material


@dataclass(frozen=True)
class Piece:
    """One token of an example: its text, its id, and whether it is trained on."""

    text: str
    token: int
    trained: bool


class Engine:
    """One studio: a workspace, a base, a worker.

    Args:
        workspace: folder for everything that is kept; made if it is not there.
        base: "embedded", a local folder, or a Hub id; "" is the one that was chosen last in this workspace, or else the embedded one.
        quantization: "auto", "nf4", "int8" or "none".
        device: "auto", "cpu" or "cuda".
        load: load the base now; without it, only what needs no model works until `load()` is called.
    """

    def __init__(
        self,
        workspace: str | Path,
        base: str = USUAL,
        quantization: str = "auto",
        device: str = "auto",
        load: bool = True,
    ) -> None:
        self.workspace = Workspace(workspace)
        try:
            self._owner: Claim | None = Claim(self.workspace.root / "owner.lock")
            self.workspace.sweep()
        except Busy:  # another studio or terminal works here too; only half-made things are left to it
            self._owner = None
        self._samples = Samples()
        self._worker = Worker()
        self._residence = Residence(self.workspace, self._worker, base, quantization, device)
        self._resident = self._residence.resident
        self.compose = Composer(self.workspace, self._worker, self._resident)
        self.conduct = Conductor(
            self.workspace,
            self._worker,
            self.base,
            self._resident,
            self._residence.look,
            lambda: self._samples.texts("general"),
        )
        self.bases = Bases(
            self.workspace, self._worker, self.base, self._residence.look, self._residence.change
        )
        self.plan = Planner(self.workspace, self.conduct)
        self.answers = Answers(self._worker, self._resident)
        if load:
            self.load()

    def close(self) -> None:
        """Ends the worker. A run that is training saves a checkpoint and can be resumed."""
        self.conduct.ask_to_close()
        self.bases.stop_fetching()
        self._worker.close()
        self.conduct.release()
        if self._owner:
            self._owner.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the base

    def load(self) -> None:
        """Begins to load the base, once; returns at once."""
        self._residence.load()

    def base(self, wait: bool = False) -> BaseInfo:
        """The resident base; with `wait`, after it is loaded."""
        return self._residence.wait() if wait else self._residence.info

    # --- data

    def preview(
        self,
        paths: Sequence[str | Path],
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        encoding: str = "utf-8",
    ) -> Preview:
        """What files hold and how we would read them; nothing is kept."""
        return datasets.preview([Path(p) for p in paths], kind, roles, encoding=encoding)

    def import_dataset(
        self,
        paths: Sequence[str | Path],
        name: str,
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        seed: int = SEED,
        encoding: str = "utf-8",
    ) -> Dataset:
        """Copies files into the workspace as a dataset with its splits."""
        return datasets.import_dataset(
            self.workspace, [Path(p) for p in paths], name, kind, roles, seed=seed, encoding=encoding
        )

    def datasets(self) -> list[Dataset]:
        return datasets.list_datasets(self.workspace)

    def dataset(self, dataset_id: str) -> Dataset:
        return datasets.load_dataset(self.workspace, dataset_id)

    def dataset_rows(self, dataset_id: str, split: str, limit: int = 20) -> list[dict[str, Any]]:
        return self._rows(dataset_id, split)[:limit]

    def _rows(self, dataset_id: str, split: str) -> list[dict[str, Any]]:
        """Rows of a split; "all" is all three.

        Raises:
            SpecError: no such split.
        """
        names = ("train", "val", "test")
        if split not in (*names, "all"):
            raise SpecError(f"There is no split {split!r}.", "Choose train, val, test or all.")
        return [
            row
            for s in (names if split == "all" else (split,))
            for row in datasets.read_split(self.workspace, dataset_id, s)
        ]

    def example_tokens(self, dataset_id: str, index: int = 0, max_length: int = 512) -> list[Piece]:
        """One training example as the model reads it, token by token."""
        dataset = self.dataset(dataset_id)
        rows = self._rows(dataset_id, "train")
        row = rows[index % len(rows)]

        def pieces() -> list[Piece]:
            from core.data.encoding import encode_task, encode_text

            base = self._resident().base
            length = min(max_length, base.context)
            if dataset.kind == "task":
                encoded = encode_task(base.tokenizer, row["messages"], length, base.eos_ids)
            else:
                encoded = encode_text(base.tokenizer, row["text"], length)[0]
            return [
                Piece(base.tokenizer.decode([t]), t, bool(m))
                for t, m in zip(encoded.ids, encoded.mask, strict=True)
            ]

        return self._worker.call(pieces)

    def samples(self) -> Samples:
        """The sample data that ships with the studio."""
        return self._samples

    # --- runs

    def missing(self, fields: dict[str, Any]) -> list[str]:
        """What a run still lacks before it can start, a sentence each; empty when it is ready."""
        return self.conduct.missing(fields)

    def estimate(self, spec: TrainSpec) -> dict[str, Any]:
        """What a run would need of the device's memory, against what that has: bytes, and a sentence as `text`."""
        return self.conduct.estimate(spec)

    def start_run(self, spec: TrainSpec, launch: Launch | None = None) -> str:
        """Queues a run and returns its id at once; see `Conductor.start_run`.

        Args:
            launch: processes of its own that train it together; None trains it on the resident base.
        """
        return self.conduct.start_run(
            spec, launcher.described(launch, spec, *self._residence.choice[1:]) if launch else None
        )

    def join_run(self, run_id: str, launch: Launch) -> None:
        """Brings the processes of this machine to a run that another machine started; stays until they end."""
        self.conduct.join_run(run_id, launch)

    def stop_run(self, run_id: str) -> None:
        """Asks a run to end after its step and keep what it learned; a queued one does not begin."""
        self.conduct.stop_run(run_id)

    def pause_run(self, run_id: str) -> None:
        """Asks a run to save a checkpoint and give the model back; it can be resumed, also after a restart."""
        self.conduct.pause_run(run_id)

    def queue(self) -> list[Waiting]:
        """The runs that wait, the next one first."""
        return self.conduct.queue()

    def move_run(self, run_id: str, to: str) -> None:
        """Moves a waiting run: "first", "up", "down" or "last"."""
        self.conduct.move_run(run_id, to)

    def cancel_run(self, run_id: str, together: bool = False) -> list[str]:
        """Takes a waiting run out of the queue, and with `together` also those that need it."""
        return self.conduct.cancel_run(run_id, together)

    def queue_again(self) -> list[str]:
        """Queues the runs again that were still waiting when their studio ended."""
        return self.conduct.queue_again()

    def resume_run(self, run_id: str) -> None:
        """Queues a run again, from its newest checkpoint that verifies."""
        self.conduct.resume_run(run_id)

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return self.conduct.runs()

    def run(self, run_id: str) -> Run:
        return self.conduct.run(run_id)

    def run_events(self, run_id: str, cursor: int = 0) -> tuple[list[dict[str, Any]], int]:
        """What happened in a run since `cursor`, and the next cursor."""
        return self.conduct.run_events(run_id, cursor)

    def wait_run(self, run_id: str, seconds: float = 3600.0) -> Run:
        """Blocks until a run has ended."""
        return self.conduct.wait_run(run_id, seconds)

    # --- adapters

    def adapters(self) -> list[Adapter]:
        """The library, newest first."""
        return sorted(
            (adapter_store.load(self.workspace, i) for i in self.workspace.ids("adapters")),
            key=lambda a: -a.created,
        )

    def adapter(self, adapter_id: str) -> Adapter:
        return adapter_store.load(self.workspace, adapter_id)

    def verify_adapter(self, adapter_id: str) -> list[str]:
        """Checks an adapter's files; sentences of what was checked."""
        return adapter_store.verify(self.workspace, adapter_id)

    def archive_adapter(self, adapter_id: str) -> Path:
        """A zip of the adapter's folder."""
        return adapter_store.archive(self.workspace, adapter_id)

    def mixable(self) -> list[dict[str, Any]]:
        """What can be mixed: the library's adapters and the one in training, oldest first."""
        found, here = [], self.base().fingerprint
        for a in reversed(self.adapters()):
            fits = not here or a.base_fingerprint == here
            why = (
                f"It cannot be mixed live: {a.unmixable}."
                if a.unmixable
                else ""
                if fits
                else f"It was trained on {a.base!r}, another base."
            )
            fits = fits and not a.unmixable
            found.append(
                {
                    "id": a.id,
                    "name": a.name,
                    "kind": a.kind,
                    "rank": a.rank,
                    "base": a.base,
                    "training": False,
                    "fits": fits,
                    "why": why,
                }
            )
        resident = self._residence.look()
        live = resident.trainee_id if resident else ""
        if live and all(f["id"] != live for f in found):
            run = next((r for r in self.runs() if r.adapter == live), None)
            if run:
                why = f"It cannot be mixed live: {resident.unmixed}." if resident and resident.unmixed else ""
                about = {
                    "id": live,
                    "name": run.name,
                    "kind": run.kind,
                    "rank": run.spec.rank,
                    "base": run.base,
                }
                found.append({**about, "training": True, "fits": not why, "why": why})
        return found

    # --- mixes

    def departures(self, mix: Mix) -> list[str]:
        """Where a mix departs from how its adapters were trained, a sentence each."""
        return departures(mix, {a.id: a for a in self.adapters()}) if mix.weights else []

    def save_mix(
        self, name: str, weights: dict[str, float], tilt: dict[str, float] | None = None
    ) -> SavedMix:
        return mixes.save(self.workspace, name, weights, tilt)

    def mixes(self) -> list[SavedMix]:
        return mixes.all_of(self.workspace)

    def mix(self, mix_id: str) -> SavedMix:
        return mixes.load(self.workspace, mix_id)

    def default_mixes(self) -> list[Mix]:
        """Base, newest domain, newest task, and both: those that exist on this base."""
        here = [a for a in self.mixable() if a["fits"]]
        domains, tasks = ([a for a in here if a["kind"] == k] for k in ("domain", "task"))
        found = [Mix(name="Base")]
        task = tasks[-1] if tasks else None
        below = ""
        if task and not task["training"]:
            below = self.adapter(task["id"]).stacked_on
        domain = next((d for d in domains if d["id"] == below), domains[-1] if domains else None)
        if domain:
            found.append(Mix(name="Domain", weights={domain["id"]: 1.0}))
        if task:
            found.append(Mix(name="Task", weights={task["id"]: 1.0}))
        if domain and task:
            found.append(Mix(name="Domain + task", weights={domain["id"]: 1.0, task["id"]: 1.0}))
        return found

    # --- talking

    def stream(
        self,
        prompt: str | Sequence[dict[str, str]],
        mixes: Sequence[Mix],
        sampling: Sampling | None = None,
        chat: bool = True,
        same_dice: bool = True,
    ) -> Stream:
        """Every mix answers one prompt, all in one batch; a stream of Frames. See `Answers.stream`."""
        return self.answers.stream(prompt, mixes, sampling, chat, same_dice)

    def retune(self, stream: Stream, mixes: Sequence[Mix]) -> None:
        """Lets an answer under way go on under other mixes, from its next token; see `Answers.retune`."""
        self.answers.retune(stream, mixes)

    def suite(
        self,
        prompts: Sequence[str],
        mixes: Sequence[Mix],
        sampling: Sampling | None = None,
        chat: bool = True,
        same_dice: bool = True,
    ) -> Stream:
        """Every mix answers every prompt, many in a batch; a stream of Sheets that fill up. Takes and raises what `stream` does."""
        return self.answers.suite(prompts, mixes, sampling, chat, same_dice)

    def vote(self, prompt: str, stamps: Sequence[dict[str, Any]], chosen: int | None) -> Vote:
        """Keeps a vote on answers, told by their stamps; `chosen` is a place among them, None for no difference."""
        return votes.cast(self.workspace, prompt, stamps, chosen)

    def withdraw_vote(self, vote_id: str) -> None:
        votes.withdraw(self.workspace, vote_id)

    def reset_votes(self) -> None:
        votes.reset(self.workspace)

    def tally(self) -> list[Standing]:
        """What all votes say about each mix, the best first."""
        return votes.tally(votes.all_of(self.workspace))

    def votes_csv(self) -> str:
        """Every vote as CSV, a row an answer."""
        return plain_csv(votes.table(votes.all_of(self.workspace)))

    # --- measuring

    def evaluate(
        self,
        mixes: Sequence[Mix],
        dataset: str,
        split: str = "test",
        limit: int = 0,
        general: bool = True,
        max_length: int = 512,
    ) -> Stream:
        """Measures mixes on a split; a stream of Progress whose last one names the report.

        Args:
            limit: at most so many rows; 0 means all.
            general: also measure general perplexity, on the general text that ships with the studio.

        Raises:
            SpecError: no mixes, or an empty split.
        """
        if not mixes:
            raise SpecError("No mix is chosen.", "Choose at least one; the base is the empty mix.")
        described = self.dataset(dataset)
        rows = self._rows(dataset, split)
        rows = rows[:limit] if limit else rows
        if not rows:
            raise SpecError(f"The split {split!r} of {described.name!r} is empty.", "Choose another split.")

        def material() -> Material:
            from core.evaluate.measure import Material

            return Material(
                questions={"": rows} if described.kind == "task" else {},
                texts={"": [r["text"] for r in rows]} if described.kind == "domain" else {},
                own={"general": self._samples.texts("general_heldout")} if general else {},
            )

        return self.measure(mixes, material, described.id, described.name, split, max_length)

    def measure(
        self,
        mixes: Sequence[Mix],
        material: Callable[[], Material],
        dataset: str,
        dataset_name: str,
        split: str,
        max_length: int = 512,
    ) -> Stream:
        """Measures mixes on any material and keeps a report; see `evaluate`."""
        return self._worker.stream(
            lambda: self._measure(list(mixes), material, dataset, dataset_name, split, max_length)
        )

    def _measure(
        self,
        mixes: list[Mix],
        material: Callable[[], Material],
        dataset: str,
        dataset_name: str,
        split: str,
        max_length: int,
    ) -> Generator[Any, None, None]:
        from core.evaluate.measure import Progress, measure

        begin = time.monotonic()
        part: Any = None
        for part in measure(self._resident(), mixes, material(), max_length):
            if isinstance(part, Progress):
                yield part
        rows = [
            {"name": m.name or str(m), "mix": str(m), "weights": m.weights, **figures}
            for m, figures in zip(mixes, part, strict=True)
        ]
        report = reports.save(
            self.workspace,
            dataset,
            dataset_name,
            split,
            self.base().name,
            round(time.monotonic() - begin, 2),
            rows,
        )
        yield Progress(1, 1, "Done", report.id)

    def reports(self) -> list[Report]:
        """All reports, newest first."""
        return sorted(
            (reports.load(self.workspace, i) for i in self.workspace.ids("reports")), key=lambda r: -r.created
        )

    def report(self, report_id: str) -> Report:
        return reports.load(self.workspace, report_id)

    def report_csv(self, report_id: str) -> Path:
        return reports.csv_path(self.workspace, report_id)

    # --- housekeeping

    def rename(self, kind: str, item_id: str, name: str) -> None:
        """Gives a dataset, adapter or mix another display name.

        Raises:
            SpecError: things of this kind have no name.
        """
        renamers: dict[str, Callable[[Workspace, str, str], Any]] = {
            "datasets": datasets.rename_dataset,
            "adapters": adapter_store.rename,
            "mixes": mixes.rename,
        }
        if kind not in renamers:
            raise SpecError(f"A {kind.rstrip('s')} cannot be renamed.", f"Only {', '.join(renamers)} can.")
        renamers[kind](self.workspace, item_id, name)

    def remove(self, kind: str, item_id: str) -> None:
        """Deletes an item.

        Raises:
            Busy: a live run uses it. NotFound: it is not there.
        """
        self.workspace.existing(kind, item_id)
        for run in self.runs():
            uses = {
                "datasets": (run.spec.dataset, run.spec.replay_dataset),
                "adapters": (run.spec.stack_on, run.adapter),
                "runs": (run.id,),
            }
            if run.status.alive and item_id in uses.get(kind, ()):
                raise Busy(f"The run {run.name!r} is using it.", "Stop the run first, or wait for its end.")
        if kind == "adapters" and (resident := self._residence.look()) is not None:
            self._worker.call(lambda: resident.forget(item_id))
        self.workspace.remove(kind, item_id)

    def disk(self) -> dict[str, int]:
        """Bytes free on the workspace's disk, and used by the workspace."""
        used = sum(p.stat().st_size for p in self.workspace.root.rglob("*") if p.is_file())
        return {"free_bytes": shutil.disk_usage(self.workspace.root).free, "used_bytes": used}

    def find_adapter(self, text: str) -> str:
        """The id of the adapter with this id or display name (the newest of several).

        Raises:
            NotFound
        """
        for adapter in self.adapters():
            if text in (adapter.id, adapter.name):
                return adapter.id
        raise NotFound(f"There is no adapter {text!r} here.", "`adapters list` shows what there is.")
