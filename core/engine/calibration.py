"""Calibrates gates: how likely an adapter makes its own prompts, and others. `engine.calibration`.

    its own dataset ─┐
    general text  ───┼─> core.evaluate.gate_prompts ─> core.model.gating ─> core.spec.gate.calibrate
    other datasets ──┘                                          ─> metadata["gate"] of the adapter

No labels are needed. A run calibrates its adapter at its end, in the background; a new calibration replaces
the stored one in one step, when it is complete. Rows are read on the thread of the caller or of the job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.data.samples import Samples
from core.engine.background_jobs import BackgroundJobs, Job, JobStatus
from core.engine.calibration_data import Choice, choose_data, suggest_others
from core.engine.resident_base import ResidentBase
from core.engine.worker import Stream, Worker
from core.errors import BaseModelError, Busy, NotFound, SpecError, StudioError
from core.progress import Progress
from core.spec.gate import MINIMUM_ROWS, GateCalibration, calibrate
from core.store import adapters as adapter_store
from core.store.adapters import Adapter
from core.store.gate_records import describe_gate, join_names, make_gate, make_note
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.resident import Resident

logger = logging.getLogger(__name__)
ENDED_LIMIT = 50  # ended jobs whose status is kept
MOVED = 0.005  # nats a token; a threshold that moves less reads as the same


@dataclass(frozen=True)
class Calibrated:
    """A calibration that was stored.

    Attributes:
        adapter: its id.
        text: what was measured, as a sentence without its end.
        previous: the threshold of the calibration before, in nats a token; None without one.
    """

    adapter: str
    calibration: GateCalibration
    text: str
    previous: float | None = None

    @property
    def change(self) -> str:
        """By how much the threshold moved, as a sentence; "" without an earlier calibration."""
        if self.previous is None:
            return ""
        moved = self.calibration.threshold - self.previous
        if abs(moved) < MOVED:
            return "The threshold is the same as before."
        direction = "up" if moved > 0 else "down"
        return f"The threshold moved {direction} by {abs(moved):.2f}, from {self.previous:.2f} nats a token."


@dataclass(frozen=True)
class CalibrationStatus(JobStatus):
    """A calibration in the background.

    Attributes:
        adapter_id: of the adapter.
        share: the finished part of the work, from 0 to 1.
        result: what was stored, at the end.
        state, text, problem, error: as in `JobStatus`.
    """

    adapter_id: str
    state: str = "waiting"
    text: str = "Waiting for another calibration"
    share: float = 0.0
    problem: str = ""
    error: StudioError | None = None
    result: Calibrated | None = None


class _StreamEnd:
    """Closes the stream of a job that is cancelled."""

    def __init__(self) -> None:
        self._stream: Stream | None = None
        self._is_ended = False

    def follow(self, stream: Stream) -> None:
        self._stream = stream
        if self._is_ended:
            stream.close()

    def end(self) -> None:
        self._is_ended = True
        if self._stream is not None:
            self._stream.close()


@dataclass(kw_only=True)
class CalibrationJob(Job):
    """A calibration in the background; what ends it is a stream, not a child process."""

    status: CalibrationStatus
    process: Any


class Calibration:
    """Calibrates the gates of adapters. Safe to call from any thread.

    Args:
        samples: returns the sample data, whose general text is replayed in training.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        samples: Callable[[], Samples],
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._samples = samples
        self._jobs: BackgroundJobs[CalibrationJob] = BackgroundJobs("calibration", ENDED_LIMIT)

    # --- what is stored

    def get(self, adapter_id: str) -> GateCalibration | None:
        """The stored calibration of an adapter; None without one.

        Raises:
            NotFound, DamagedRecord
        """
        return GateCalibration.from_json(adapter_store.load(self._workspace, adapter_id).metadata.get("gate"))

    def describe(self, adapter_id: str) -> str:
        """What is known about the gate of an adapter, as a sentence without its end.

        Raises:
            NotFound, DamagedRecord
        """
        return describe_gate(adapter_store.load(self._workspace, adapter_id).metadata.get("gate"))

    def suggest_against(self, adapter_id: str) -> list[str]:
        """What `start` measures an adapter against by default: ids of datasets, and GENERAL.

        Raises:
            NotFound, DamagedRecord
        """
        samples = self._samples().general_for(self._resident_base.info.name)
        return suggest_others(self._workspace, samples, adapter_store.load(self._workspace, adapter_id))

    # --- measuring

    def start(
        self,
        adapter_id: str,
        own: str | None = None,
        against: Sequence[str] = (),
        questions: bool = False,
        texts: Sequence[str] = (),
    ) -> Stream:
        """Calibrates the gate of an adapter, and stores the calibration when it is complete.

        Args:
            own: id of a dataset like what the adapter is for; None takes the one that it was trained on.
            against: ids of datasets that it is not for, and `calibration_data.GENERAL` for general text;
                empty takes general text and the datasets of other adapters of its base.
            questions: use labelled rows only, so that both sides are questions.
            texts: questions that the adapter is for, in place of its own dataset.

        Returns:
            a stream of Progress that ends with a Calibrated.

        Raises:
            SpecError: the datasets do not suit. NotFound, StorageError: a dataset or the adapter is missing.
            Busy: it is in training. AdapterError: it belongs to another base. When the stream is read: too
            few prompts, or a base with an encoder.
        """
        if (resident := self._resident_base.peek()) is not None:
            _check_in_training(resident, adapter_id)
        adapter = adapter_store.load(self._workspace, adapter_id)
        if resident is not None:
            _check_fit(resident, adapter)
        samples = self._samples().general_for(self._resident_base.info.name)
        choice = choose_data(self._workspace, samples, adapter, own, against, questions, texts)
        return self._worker.stream(lambda: self._measure(adapter, choice))

    def _measure(self, adapter: Adapter, choice: Choice) -> Generator[Any, None, None]:
        """On the model's thread."""
        from core.evaluate.gate_prompts import draw_prompts, list_questions
        from core.model.gating import measure_evidence

        resident = self._resident_base.get()
        _check_in_training(resident, adapter.id)  # again: both may have changed since `start`
        _check_fit(resident, adapter)
        yield Progress(0, 1, f"Choosing prompts for {adapter.name}")
        (own,) = yield from draw_prompts(resident.base, [choice.own])
        others = yield from draw_prompts(
            resident.base, choice.others, without=list_questions(choice.own.rows)
        )
        _check_counts(choice, own, others)
        prompts = [*own, *(prompt for of_source in others for prompt in of_source)]
        evidence: list[float | None] = []
        for found in measure_evidence(resident, prompts, [adapter.id]):
            evidence = [of_prompt[adapter.id] for of_prompt in found]
            done = sum(value is not None for value in evidence)
            yield Progress(done, len(prompts), f"Measuring prompts with {adapter.name}")
        calibration = calibrate(
            [value for value in evidence[: len(own)] if value is not None],
            [value for value in evidence[len(own) :] if value is not None],
            [s.name for s, drawn in zip(choice.others, others, strict=True) if drawn],
            resident.base.fingerprint,
            choice.has_own_questions,
        )
        yield self._store(resident, adapter, choice.own.name, calibration)

    def _store(
        self, resident: Resident, adapter: Adapter, own_name: str, calibration: GateCalibration
    ) -> Calibrated:
        previous = self.get(adapter.id)
        gate = make_gate(calibration, own_name)
        adapter_store.set_gate(self._workspace, adapter.id, gate, resident.digests.get(adapter.id, ""))
        resident.set_calibration(adapter.id, calibration)
        threshold = previous.threshold if previous else None
        return Calibrated(adapter.id, calibration, describe_gate(gate), threshold)

    # --- in the background

    def start_job(
        self,
        adapter_id: str,
        own: str | None = None,
        against: Sequence[str] = (),
        questions: bool = False,
        texts: Sequence[str] = (),
        is_automatic: bool = False,
    ) -> None:
        """Calibrates in the background; `status` follows it. One calibration runs at a time.

        Args:
            own, against, questions, texts: as for `start`.
            is_automatic: whether the reason is stored with the adapter if it cannot be calibrated.

        Raises:
            Busy: it is being calibrated already.
        """
        if (status := self.status(adapter_id)) is not None and not status.has_ended:
            if is_automatic:  # trained further since that began
                self._jobs.cancel(adapter_id)
            else:
                raise Busy(
                    "This adapter is being calibrated already.", "Wait until that is done, or stop it."
                )
        arguments = (adapter_id, own, tuple(against), questions, tuple(texts))
        self._jobs.start(
            CalibrationJob(
                key=adapter_id,
                status=CalibrationStatus(adapter_id),
                work=lambda job: self._run(job, arguments, is_automatic),
                process=_StreamEnd(),
            )
        )

    def start_for_run(self, adapter_id: str) -> None:
        """Calibrates the adapter of a run that has ended; nothing of it can fail the run."""
        try:
            self.start_job(adapter_id, is_automatic=True)
        except Exception:
            logger.exception("the calibration of the adapter %s could not be started", adapter_id)

    def status(self, adapter_id: str) -> CalibrationStatus | None:
        """The calibration of an adapter in the background; None where there was none since the start."""
        job = self._jobs.get(adapter_id)
        return job.status if job else None

    def cancel(self, adapter_id: str) -> None:
        """Stops a calibration in the background; an earlier one stays as it is.

        Raises:
            NotFound
        """
        self._jobs.cancel(adapter_id)

    def wait(self, adapter_id: str, seconds: float | None = None) -> CalibrationStatus | None:
        """Waits until the calibration of an adapter has ended, at most so long; None where there is none."""
        return self._jobs.wait(adapter_id, seconds).status if self._jobs.get(adapter_id) else None

    def wait_for_all(self, seconds: float | None = None) -> None:
        """Waits until every calibration in the background has ended, each at most so long."""
        for job in self._jobs.list_jobs():
            self.wait(job.key, seconds)

    def close(self) -> None:
        """Stops every calibration in the background."""
        self._jobs.close()

    def _run(self, job: CalibrationJob, arguments: tuple[Any, ...], is_automatic: bool) -> dict[str, Any]:
        try:
            stream = self.start(*arguments)
            job.process.follow(stream)
            result: Any = None
            for part in stream:
                self._jobs.poll_cancel(job)
                result = part
                if isinstance(part, Progress):
                    job.set_status(text=part.text, share=part.done / part.total)
        except StudioError as e:
            self._jobs.poll_cancel(job)
            if is_automatic:
                self._store_reason(job.key, e)
            raise
        self._jobs.poll_cancel(job)
        return {"result": result, "share": 1.0, "text": result.text}

    def _store_reason(self, adapter_id: str, error: StudioError) -> None:
        """Records why a new adapter has no calibration, so that the page can say it."""
        reason = error.what
        if isinstance(error, BaseModelError):
            reason = "its base was not in memory"
        try:
            if self.get(adapter_id) is None:
                adapter_store.set_gate(self._workspace, adapter_id, make_note(reason))
        except NotFound:  # deleted meanwhile
            return
        except StudioError:
            logger.exception("why the adapter %s is not calibrated could not be stored", adapter_id)


def _check_in_training(resident: Resident, adapter_id: str) -> None:
    if adapter_id == resident.trainee_id:
        raise Busy(
            "This adapter is still in training, and it is calibrated at the end.",
            "Wait until its run ends, or stop the run to keep the current state.",
        )


def _check_fit(resident: Resident, adapter: Adapter) -> None:
    """Checks that gates work on the resident base, and that an adapter belongs to it.

    Raises:
        AdapterError, SpecError
    """
    resident.check_same_base(adapter)
    if resident.base.family.seq2seq:
        raise SpecError(
            f"Gates need a base that reads and answers with one stack, and {resident.base.name!r} has an "
            "encoder.",
            "Set a fixed weight for its adapters.",
        )


def _check_counts(choice: Choice, own: Sequence[Any], others: Sequence[Sequence[Any]]) -> None:
    """Checks that both sides have enough prompts.

    Raises:
        SpecError: names the side.
    """
    form = "questions" if choice.only_questions else "questions or sentences"
    sides = (("own", len(own), [choice.own]), ("against", sum(map(len, others)), choice.others))
    for field, count, sources in sides:
        if count < MINIMUM_ROWS:
            raise SpecError(
                f"A calibration needs at least {MINIMUM_ROWS} different {form} on each side, got {count} "
                f"from {join_names([s.name for s in sources]) or 'nothing'}.",
                "Choose larger datasets.",
            ).at(field)
