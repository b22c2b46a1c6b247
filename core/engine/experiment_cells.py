"""Runs the cells of an experiment: all cells of the resident base together, question by question.

    question 0: base | base + documents | mix | mix + documents     one batch
    question 1: ...
    then the general questions of each mix, and some questions one at a time, for latency

Each answer is appended to the log of its cell as soon as it is complete, so a killed process loses at most
one batch. A cell is complete when its last answer is; it then becomes one file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from core.engine.experiment_questions import (
    AskedQuestion,
    FoundPassages,
    Search,
    describe_passages,
    find_passages,
    make_writer,
)
from core.engine.worker import Stream, Worker
from core.errors import StudioError
from core.evaluate.answer_figures import NATS, SCORED, score_answer
from core.spec.experiment import ExperimentRow, read_documents
from core.spec.mix import Mix
from core.spec.retrieval import RetrievalSettings
from core.store.experiments import (
    ANSWER,
    GENERAL,
    TIMED,
    Cell,
    CellAnswer,
    CellLog,
    TimedAnswer,
    save_cell,
)
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.evaluate.answers import AnswerTask, TaskAnswer
    from core.model.resident import Resident

BATCH_QUESTIONS = 4  # of which all cells answer in one batch
Report = Callable[[int, str], None]  # answers that were added, and what is being done


def make_key(conditions: dict[str, Any]) -> str:
    """The key of a cell: a sha256 over its conditions without the versions of libraries."""
    covered = {name: value for name, value in conditions.items() if name != "versions"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


@dataclass
class OpenCell:
    """A cell in progress.

    Attributes:
        row, mix: of the experiment; the mix has ids of adapters.
        conditions: see `core.store.experiments.Cell`.
        log: where answers are appended.
        answers, general, timed: what is answered so far, by index.
        notes: questions that were left out, by index.
    """

    row: ExperimentRow
    mix: Mix
    conditions: dict[str, Any]
    log: CellLog
    answers: dict[int, CellAnswer] = field(default_factory=dict)
    general: dict[int, float] = field(default_factory=dict)
    timed: dict[int, TimedAnswer] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key of the cell."""
        return make_key(self.conditions)

    @property
    def settings(self) -> RetrievalSettings | None:
        """How its documents are searched; None without documents."""
        return read_documents(self.row.documents)

    def resume(self) -> None:
        """Reads what is answered already."""
        self.answers, self.general, self.timed = self.log.read()

    def add_answer(self, question: AskedQuestion, answer: CellAnswer) -> None:
        """Scores an answer and appends it."""
        passages = [p.text for p in answer.passages] if self.settings else None
        figures, outcome = score_answer(question.text, answer.answer, question.reference, passages)
        scored = CellAnswer(
            **{**answer.__dict__, "figures": {**answer.figures, **figures}, "outcome": outcome}
        )
        self.log.append(ANSWER, asdict(scored))
        self.answers[question.index] = scored

    def add_general(self, index: int, f1: float) -> None:
        """Appends the F1 of a general question."""
        self.log.append(GENERAL, {"index": index, "f1": f1})
        self.general[index] = f1

    def add_latency(self, timed: TimedAnswer) -> None:
        """Appends an answer that was given alone."""
        self.log.append(TIMED, asdict(timed))
        self.timed[timed.index] = timed

    def save(self, workspace: Workspace, experiment_id: str, memory_bytes: int) -> None:
        """Writes the complete cell."""
        cell = Cell(
            self.key,
            self.row.to_json(),
            self.conditions,
            tuple(self.answers[i] for i in sorted(self.answers)),
            tuple(self.general[i] for i in sorted(self.general)),
            tuple(self.timed[i] for i in sorted(self.timed)),
            memory_bytes,
            tuple(self.notes[i] for i in sorted(self.notes)),
        )
        save_cell(workspace, experiment_id, cell)


@dataclass(frozen=True)
class CellWork:
    """What the cells of a resident base answer.

    Attributes:
        timed: how many of the questions are answered alone, too.
        limit: the longest answer, in tokens.
        poll: raises Cancelled where the work is cancelled.
    """

    questions: Sequence[AskedQuestion]
    general: Sequence[AskedQuestion]
    timed: int
    limit: int
    sources: Sequence[str]
    search: Search
    poll: Callable[[], None]
    report: Report


class ResidentCells:
    """Answers the questions of cells with the resident base, on the thread of a job."""

    def __init__(self, worker: Worker, resident: Callable[[], Resident], work: CellWork) -> None:
        self._worker, self._resident, self._work = worker, resident, work
        self._found: dict[tuple[str, int], FoundPassages | None] = {}

    def run(self, cells: Sequence[OpenCell]) -> int:
        """Answers everything that the cells lack; returns the memory in bytes.

        Raises:
            Cancelled; StudioError: a search or the base failed. What is answered is on the disk.
        """
        for start in range(0, len(self._work.questions), BATCH_QUESTIONS):
            self._answer(cells, self._work.questions[start : start + BATCH_QUESTIONS])
        self._answer_general(cells)
        for question in self._work.questions[: self._work.timed]:
            self._time(cells, question)
        return self._worker.call(lambda: _measure_memory(self._resident()))

    def _find(self, cell: OpenCell, question: AskedQuestion) -> FoundPassages | None:
        place = cell.row.documents, question.index
        if place not in self._found:
            self._found[place] = find_passages(self._work.search, self._work.sources, question, cell.settings)
        return self._found[place]

    def _answer(self, cells: Sequence[OpenCell], questions: Sequence[AskedQuestion]) -> None:
        from core.evaluate.answers import AnswerTask, answer_tasks

        pending = [
            (c, q) for q in questions for c in cells if q.index not in c.answers and q.index not in c.notes
        ]
        tasks = [
            AnswerTask(i, c.mix, q.history, make_writer(q, self._find(c, q)), q.reference, self._work.limit)
            for i, (c, q) in enumerate(pending)
        ]
        for answer in self._stream(tasks, answer_tasks):
            cell, question = pending[answer.key]
            if answer.problem:
                cell.notes[question.index] = f"Question {question.index + 1} was left out: {answer.problem}."
            else:
                cell.add_answer(question, _describe_answer(question, answer))
            self._work.report(1, "Answering the questions")

    def _answer_general(self, cells: Sequence[OpenCell]) -> None:
        """Each mix answers the general questions once, also where several cells have it."""
        from core.evaluate.answers import AnswerTask, answer_tasks
        from core.evaluate.metrics import f1

        by_mix: dict[str, list[OpenCell]] = {}
        for cell in cells:
            by_mix.setdefault(str(cell.mix), []).append(cell)
        pending = [
            (of_mix, q)
            for q in self._work.general
            for of_mix in by_mix.values()
            if any(q.index not in c.general for c in of_mix)
        ]
        tasks = [
            AnswerTask(i, of_mix[0].mix, q.history, make_writer(q, None), "", self._work.limit)
            for i, (of_mix, q) in enumerate(pending)
        ]
        for answer in self._stream(tasks, answer_tasks):
            of_mix, question = pending[answer.key]
            value = 0.0 if answer.problem else f1(answer.column.text, question.reference)
            lacking = [cell for cell in of_mix if question.index not in cell.general]
            for cell in lacking:
                cell.add_general(question.index, value)
            self._work.report(len(lacking), "Answering general questions")

    def _time(self, cells: Sequence[OpenCell], question: AskedQuestion) -> None:
        """The cells answer one question in turn, each alone, so that a busy machine slows all of them."""
        from core.evaluate.answers import AnswerTask, answer_alone

        for cell in cells:
            if question.index in cell.timed or question.index in cell.notes:
                continue
            found = find_passages(self._work.search, self._work.sources, question, cell.settings)
            task = AnswerTask(
                0, cell.mix, question.history, make_writer(question, found), "", self._work.limit
            )
            for answer in self._stream([task], answer_alone):
                if not answer.problem:
                    seconds = answer.column.seconds + (found.seconds if found else 0.0)
                    cell.add_latency(TimedAnswer(question.index, seconds, answer.column.tokens))
                self._work.report(1, "Measuring the latency")

    def _stream(
        self, tasks: Sequence[AnswerTask], answer: Callable[[Any, Any], Iterator[Any]]
    ) -> Iterator[TaskAnswer]:
        """The answers to tasks, as soon as each is complete."""
        if not tasks:
            return

        def work() -> Iterator[Any]:
            done: tuple[Any, ...] = ()
            for part in answer(self._resident(), tasks):
                if part is not None:
                    done += tuple(part)
                yield done if part is not None else None

        stream = Stream(lambda: self._worker.is_running)
        self._worker.attach(stream, work)  # type: ignore[arg-type]
        count = 0
        try:
            for done in stream:
                self._work.poll()
                yield from done[count:]
                count = len(done)
        finally:
            stream.close()
        if count < len(tasks):
            raise StudioError("The answers ended early.", "Continue the experiment.")


def _describe_answer(question: AskedQuestion, answer: TaskAnswer) -> CellAnswer:
    """An answer before it is scored."""
    column, prompt = answer.column, answer.used
    scored = {NATS: answer.nats, SCORED: float(answer.scored_tokens)} if answer.scored_tokens else {}
    return CellAnswer(
        question.index,
        question.text,
        column.text,
        question.reference,
        passages=describe_passages(prompt),
        left_out=len(prompt.left_out) if prompt else 0,
        reason=column.reason,
        tokens=column.tokens,
        seconds=column.seconds,
        figures=scored,
    )


def _measure_memory(resident: Resident) -> int:
    """The largest memory of the GPU, or the weights in memory on a CPU, in bytes; on the model's thread."""
    import torch

    if resident.base.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(resident.base.device))
    return int(resident.base.model.get_memory_footprint())
