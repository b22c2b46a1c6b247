"""Exports: files for other tools, written in the background, each with its certificate. `engine.exports`.

    start ─> exports/<id>/export.json ─> files (core.export.build_job, a process) ─> complete
          ─> the studio answers prompts (worker's thread) ─> the file answers them (core.export.check_job)
          ─> certificate
    push  ─> the Hub (core.engine.export_uploads)

A killed studio leaves the record and what was written; `resume` continues there.
"""

from __future__ import annotations

import builtins
import json
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.child_process import ChildProcess
from core.data.samples import Samples
from core.engine.background_jobs import BackgroundJobs, Job, JobStatus
from core.engine.datasets import Datasets
from core.engine.export_uploads import ExportUploads
from core.engine.resident_base import ResidentBase
from core.engine.worker import Worker
from core.errors import BaseModelError, Busy, NotFound, SpecError, StudioError
from core.progress import Progress, ReadProgress
from core.spec.export import FORM_LABELS, ExportSpec
from core.store import adapters as adapter_store
from core.store import base_models, exports, hub_upload
from core.store.exports import KIND, Export, ExportedFile
from core.store.files import describe_files, ensure_space
from core.store.workspace import Workspace, check_name, make_id

if TYPE_CHECKING:
    from core.export.certificate import Certificate
    from core.export.estimate import Estimate
    from core.export.reference import Question, Reference

logger = logging.getLogger(__name__)
ENDED_LIMIT = 50  # ended jobs whose status is kept
ESTIMATES_LIMIT = 200  # estimates that are remembered
ROWS_READ = 100  # of a dataset, for prompts
BEGINNING = 240  # characters of a text that a prompt begins with
PARTS = {"files": 0.0, "studio": 0.6, "check": 0.75}  # of the whole work, where each part begins


@dataclass(frozen=True)
class ExportStatus(JobStatus):
    """The work on one export.

    Attributes:
        export_id, name: of the export.
        share: the finished part of the work, from 0 to 1.
        state, text, problem, error: as in `JobStatus`.
    """

    export_id: str
    name: str
    state: str = "waiting"
    text: str = "Waiting for another export"
    share: float = 0.0
    problem: str = ""
    error: StudioError | None = None


@dataclass(kw_only=True)
class ExportJob(Job):
    """The work on one export."""

    status: ExportStatus


class Exports:
    """Writes and checks exports. Safe to call from any thread.

    Args:
        samples: returns the sample data, whose general text gives prompts where an adapter has no data.

    Attributes:
        uploads: the uploads that `push` starts.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        datasets: Datasets,
        samples: Callable[[], Samples],
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._datasets, self._samples = datasets, samples
        self._jobs: BackgroundJobs[ExportJob] = BackgroundJobs("export", ENDED_LIMIT)
        self._estimates: dict[str, Estimate] = {}  # by what they depend on
        self.uploads = ExportUploads(workspace)

    # --- what is stored

    def list(self) -> builtins.list[Export]:
        """Every export, the newest first."""
        return exports.load_all(self._workspace)[0]

    def get(self, export_id: str) -> Export:
        """Reads an export.

        Raises:
            NotFound, DamagedRecord
        """
        return exports.load(self._workspace, export_id)

    def find(self, name: str) -> Export:
        """Finds an export by its id, or by its name where only one has it.

        Raises:
            NotFound
        """
        found = [e for e in self.list() if e.id == name] or [e for e in self.list() if e.name == name]
        if len(found) != 1:
            problem = f"{len(found)} exports are called" if found else "No export is called"
            raise NotFound(f"{problem} {name!r}.", "See `exports list` for the ids.")
        return found[0]

    def folder(self, export_id: str) -> Path:
        """The folder with the files of an export.

        Raises:
            NotFound, DamagedRecord
        """
        return exports.files_folder(self._workspace, self.get(export_id).id)

    def delete(self, export_id: str) -> None:
        """Deletes an export with its files. They can be written again, so they do not go to the trash.

        Raises:
            NotFound. Busy: it is being written or uploaded.
        """
        self._check_idle(export_id, "Stop it first.")
        self._workspace.delete(KIND, export_id)

    def push(self, export_id: str, repo: str, private: bool = True, although_failed: bool = False) -> None:
        """Starts the upload of an export to the Hub; `uploads` follows it and has the address of the commit.

        Args:
            repo: "owner/name"; one that does not exist is created.
            private: whether a new repository is private.
            although_failed: uploads an export whose certificate failed, too.

        Raises:
            NotFound, DamagedRecord. Busy: it is being written or uploaded. SpecError: the export is not
                complete, the name, or (at the field "although_failed") its certificate failed.
        """
        export = self.get(export_id)
        self._check_idle(export_id, "Wait until it is done.")
        if not export.is_complete:
            raise SpecError(f"The export {export.name!r} is not complete.", "Continue it first.")
        repo = repo.strip()
        hub_upload.check_repository(repo)
        if export.certificate.get("status") == "failed" and not although_failed:
            raise SpecError(
                f"The check of the export {export.name!r} failed.",
                "Check it again; or upload it all the same, with --although-failed.",
            ).at("although_failed")
        self.uploads.start(export, repo, private)

    # --- the work

    def estimate(self, spec: ExportSpec) -> Estimate:
        """What an export will take, before it starts.

        Raises:
            SpecError, AdapterError, BaseModelError: it cannot be exported.
        """
        folder, name = self._find_base_folder(), self._resident_base.info.name
        read = [self._workspace.path("adapters", adapter) for adapter in spec.weights]
        key = json.dumps([spec.to_json(), name, [describe_files(f) for f in (folder, *read)]])

        def work() -> Estimate:
            from core.export.estimate import estimate

            return estimate(self._workspace, spec, name, folder)

        # Every page that opens asks for the same one.
        found = self._estimates.get(key)
        if found is None:
            # On the model's thread: transformers changes a setting of the whole process while it reads a
            # config.
            found = self._worker.call(work)
            if len(self._estimates) >= ESTIMATES_LIMIT:
                self._estimates.clear()
            self._estimates[key] = found
        return found

    def start(self, spec: ExportSpec) -> str:
        """Starts an export, and returns its id at once.

        Raises:
            SpecError, AdapterError, BaseModelError: it cannot be exported. DiskFull: too little is free.
        """
        if not any(spec.weights.values()):
            raise SpecError("The export has no adapter.", "Choose an adapter, or raise a weight above 0.")
        name = check_name(spec.name or self._suggest_name(spec))
        spec = ExportSpec.from_json({**spec.to_json(), "name": name})
        found = self.estimate(spec)
        ensure_space(self._workspace.root, found.free_bytes)
        info = self._resident_base.info
        export = Export(make_id(name), name, spec.form, spec.to_json(), info.name, info.fingerprint)
        exports.files_folder(self._workspace, export.id).mkdir(parents=True)
        exports.save(self._workspace, export)
        self._start_job(export)
        return export.id

    def resume(self, export_id: str) -> None:
        """Continues an export that was stopped or interrupted; of a complete one, the check.

        Raises:
            NotFound, DamagedRecord. Busy: it is being written or uploaded. BaseModelError: another base is
                resident.
        """
        export = self.get(export_id)
        self._check_idle(export_id, "Wait until it is done.")
        if export.base_fingerprint != self._fingerprint():
            raise BaseModelError(
                f"The export {export.name!r} is of the base {export.base!r}, which is not loaded.",
                "Change to that base first.",
            )
        self._start_job(export)

    def status(self, export_id: str) -> ExportStatus | None:
        """The work on an export; None where there was none since the engine was opened."""
        job = self._jobs.get(export_id)
        return job.status if job else None

    def statuses(self) -> builtins.list[ExportStatus]:
        """The work on all exports since the engine was opened, the oldest first."""
        return [job.status for job in self._jobs.list_jobs()]

    def cancel(self, export_id: str) -> None:
        """Stops the work on an export; what is written stays, and `resume` continues there.

        Raises:
            NotFound
        """
        self._jobs.cancel(export_id)

    def wait(self, export_id: str, seconds: float | None = None) -> ExportStatus:
        """Waits until the work on an export has ended, at most so long.

        Raises:
            NotFound
        """
        return self._jobs.wait(export_id, seconds).status

    def close(self) -> None:
        """Stops the work on every export."""
        self.uploads.close()
        self._jobs.close()

    def _check_idle(self, export_id: str, fix: str) -> None:
        """Checks that nothing reads or writes the files of an export.

        Raises:
            Busy
        """
        if (status := self.status(export_id)) and not status.has_ended:
            raise Busy(f"The export {status.name!r} is being written.", fix)
        if self.uploads.is_running(export_id):
            raise Busy(f"The export {self.get(export_id).name!r} is being uploaded.", fix)

    def _start_job(self, export: Export) -> None:
        self._jobs.start(
            ExportJob(
                key=export.id,
                status=ExportStatus(export.id, export.name),
                work=lambda job: self._run(job, export),
                process=ChildProcess("core.export.build_job", "export"),
            )
        )

    # --- on the job's thread

    def _run(self, job: ExportJob, export: Export) -> dict[str, Any]:
        spec = ExportSpec.from_json(export.spec)
        job.set_status(text="Starting")
        if not export.is_complete:
            built = job.process.run(self._make_request(export), self._answer(job, "files"))
            export = exports.change(
                self._workspace,
                export.id,
                is_complete=True,
                files=[ExportedFile(**file) for file in built["files"]],
                notes=built["notes"],
            )
        certificate = self._check(job, export, spec) if spec.prompts else {}
        if certificate:
            from core.export.card import add_certificate

            files = exports.files_folder(self._workspace, export.id)
            changed = add_certificate(files, export.files, certificate, export)
            exports.change(self._workspace, export.id, certificate=certificate, files=changed)
        return {"share": 1.0, "text": _describe_end(certificate)}

    def _make_request(self, export: Export) -> Any:
        from core.export.build_job import BuildRequest

        return BuildRequest(
            str(self._workspace.root),
            export.spec,
            export.base,
            export.base_fingerprint,
            str(self._find_base_folder()),
            str(exports.files_folder(self._workspace, export.id)),
        )

    def _answer(self, job: ExportJob, part: str) -> Any:
        """Receives the progress of a part of the work."""
        begins = sorted(PARTS.values())
        begin = PARTS[part]
        end = next((b for b in begins if b > begin), 1.0)

        def receive(question: Any) -> None:
            self._jobs.poll_cancel(job)
            progress = ReadProgress(**question["progress"])
            done = progress.done / progress.total if progress.total else 0.0
            job.set_status(text=progress.text, share=begin + (end - begin) * min(1.0, done))

        return receive

    def _check(self, job: ExportJob, export: Export, spec: ExportSpec) -> dict[str, Any]:
        """The certificate; why there is none, where it cannot be made."""
        from core.export.checks import plan_check

        with self._workspace.temporary_folder() as folder:
            try:
                self._answer_questions(job, spec, folder)
            except StudioError as e:
                self._jobs.poll_cancel(job)
                return _explain_missing_check(f"The studio could not answer: {e.what}")
            files = exports.files_folder(self._workspace, export.id)
            parameters = self._resident_base.info.parameters
            request = plan_check(spec, files, self._find_base_folder(), str(folder), parameters)
            if isinstance(request, str):
                return _explain_missing_check(request)
            job.process = ChildProcess("core.export.check_job", "check of the export")
            try:
                found: dict[str, Any] = job.process.run(request, self._answer(job, "check"))
            except StudioError as e:
                self._jobs.poll_cancel(job)
                if job.process.ended_early:  # llama.cpp ends its process on some errors
                    return _explain_missing_check(f"The runtime ended without an answer. {e.what}", "failed")
                raise
            return found

    def _answer_questions(self, job: ExportJob, spec: ExportSpec, folder: Path) -> None:
        questions = self.choose_questions(spec)

        def work() -> Generator[Progress | Reference, None, None]:
            from core.export.reference import answer_questions

            return answer_questions(self._resident_base.get(), spec.mix, questions, folder)

        receive = self._answer(job, "studio")
        stream = self._worker.stream(work)
        try:
            for found in stream:
                if isinstance(found, Progress):
                    receive({"progress": asdict(ReadProgress(found.done, found.total, found.text))})
        finally:
            stream.close()

    def choose_questions(self, spec: ExportSpec) -> builtins.list[Question]:
        """Prompts from the held-out rows of what the adapters were trained on; their datasets take turns.

        General text gives the prompts where no dataset is left, as for imported adapters.
        """
        from core.export.reference import Question

        sources = [self._prompts_of(a) for a, weight in spec.weights.items() if weight]
        found = dict.fromkeys(q for q in chain.from_iterable(zip_longest(*sources)) if q)
        if not found:
            texts = self._samples().general_for(self._resident_base.info.name).texts("general_heldout")
            found = dict.fromkeys(Question(text[:BEGINNING], True) for text in texts)
        return list(found)[: spec.prompts]

    def _prompts_of(self, adapter_id: str) -> Sequence[Question]:
        from core.export.reference import Question

        try:
            adapter = adapter_store.load(self._workspace, adapter_id)
            dataset = self._datasets.get(adapter.dataset) if adapter.dataset else None
            if dataset is None:
                return []
            for split in ("val", "test", "train"):
                if rows := self._datasets.rows(dataset.id, split, ROWS_READ):
                    break
        except StudioError:  # deleted or damaged since
            return []
        if dataset.kind == "domain":
            return [Question(str(row.get("text", ""))[:BEGINNING].strip(), True) for row in rows]
        return [Question(text) for row in rows if (text := _first_question(row))]

    # --- the base

    def _fingerprint(self) -> str:
        info = self._resident_base.wait()
        if info.error or not info.fingerprint:
            raise BaseModelError("No base is loaded.", "Choose one under Base.")
        return info.fingerprint

    def _find_base_folder(self) -> Path:
        """The folder with the files of the resident base."""
        self._fingerprint()
        source, is_local = base_models.locate(self._resident_base.info.name)
        if not is_local:
            raise BaseModelError(
                f"The files of {source!r} are not complete on this machine.", "Download the base again."
            )
        return Path(source)

    def _suggest_name(self, spec: ExportSpec) -> str:
        names = [adapter_store.load(self._workspace, a).name for a, w in spec.weights.items() if w]
        return " + ".join(names)[:80] or FORM_LABELS[spec.form]


def _first_question(row: dict[str, Any]) -> str:
    messages = row.get("messages") or []
    return next((str(m["content"]).strip() for m in messages if m["role"] == "user"), "")


def _explain_missing_check(reason: str, status: str = "not checked") -> dict[str, Any]:
    from core.export.certificate import Certificate

    made: Certificate = Certificate(status, reason, created=time.time())
    return asdict(made)


def _describe_end(certificate: dict[str, Any]) -> str:
    if not certificate:
        return "Done, without a check"
    agreement = f": {certificate['agreement']:.1%} of the tokens agree" if certificate["positions"] else ""
    return f"Done. Check {certificate['status']}{agreement}"
