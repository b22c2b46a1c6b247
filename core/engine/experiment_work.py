"""The work on one experiment, on the thread of its job: base by base, then address by address.

rows that can be run ─> rows of each base, all cells in one batch ─> rows at addresses, one after the other
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from core.data.samples import Samples
from core.engine.bases import Bases
from core.engine.datasets import Datasets
from core.engine.experiment_address import ask_address
from core.engine.experiment_bases import BaseTurns, RowNeeds
from core.engine.experiment_cells import CellWork, OpenCell, ResidentCells, make_key
from core.engine.experiment_questions import (
    AskedQuestion,
    Search,
    describe_passages,
    find_passages,
    hash_questions,
    list_sources,
    make_writer,
    read_general,
    read_questions,
)
from core.engine.library import Library
from core.engine.resident_base import ResidentBase
from core.engine.worker import Worker
from core.errors import Cancelled, StudioError
from core.retrieve.prompt import INSTRUCTION
from core.spec.answer_metrics import FACT_RULE
from core.spec.experiment import ExperimentRow, read_documents
from core.spec.metric_rules import RULE
from core.spec.mix import Mix
from core.store import experiments as store
from core.store.experiments import Cell, CellAnswer, CellLog, Experiment, TimedAnswer, find_cell
from core.store.workspace import Workspace

VERSION = 1  # of what an answer depends on in this code; another one measures cells again
EXTRA_TOKENS = 24  # of an answer beyond the longest reference, for citations
ADDRESS_TOKENS = 256  # longest answer of an address, where the experiment does not say
LIBRARIES = ("torch", "transformers", "peft")
DONE, WAITING, RUNNING = "done", "waiting", "running"


@dataclass(frozen=True)
class ExperimentParts:
    """The parts of the engine that an experiment uses."""

    workspace: Workspace
    worker: Worker
    resident_base: ResidentBase
    datasets: Datasets
    library: Library
    search: Search
    samples: Callable[[], Samples]
    bases: Bases
    needs: RowNeeds


class ExperimentWork:
    """Runs the rows of an experiment.

    Args:
        loads_bases: whether bases may be loaded for rows that need another one than the resident base.
        report_status: replaces fields of the status: `text`, `share`, or `rows` with the state of each row.
        poll: raises Cancelled where the work is cancelled.
        is_closing: whether the studio is being stopped.
    """

    def __init__(
        self,
        parts: ExperimentParts,
        experiment: Experiment,
        loads_bases: bool,
        report_status: Callable[..., None],
        poll: Callable[[], None],
        is_closing: Callable[[], bool],
    ) -> None:
        self._parts, self._experiment, self._spec = parts, experiment, experiment.settings
        self._workspace, self._resident_base = parts.workspace, parts.resident_base
        self._loads_bases, self._report_status = loads_bases, report_status
        self._poll, self._is_closing = poll, is_closing
        self._questions: list[AskedQuestion] = []
        self._sources: list[str] = []
        self._rows: dict[str, str] = {}
        self._done, self._total = 0, 1

    def run(self) -> None:
        """Runs the rows that can be run, and says of every row what is known.

        Raises:
            Cancelled. StudioError: rows failed; the others are complete.
        """
        self._report_status(text="Preparing the questions")
        self._questions = read_questions(self._parts.datasets, self._spec)
        store.remove_finished_logs(self._workspace, self._experiment.id)
        rows = self._find_open()
        self._total = max(1, len(rows) * len(self._questions))
        if any(row.passages for row in rows):
            self._sources = list_sources(self._parts.datasets, self._parts.search, self._spec)
        problems = self._run_bases([row for row in rows if not row.address])
        for row in rows:
            if row.address:
                try:
                    self._run_address(row)
                except Cancelled:
                    raise
                except StudioError as e:
                    problems.append(f"{row.name}: {e}")
                    self._set_row(row, f"failed: {e.what}")
        if problems:
            raise StudioError(" ".join(problems))

    def _find_open(self) -> list[ExperimentRow]:
        """The rows that can be run; the status says of each row what is known."""
        self._resident_base.wait()
        complete = store.read_cells(self._workspace, self._experiment.id)
        rows = [row for row in self._experiment.rows if row.name not in complete]
        if self._loads_bases:
            self._parts.needs.identify_bases(rows)
        obstacles = {
            row.name: self._parts.needs.explain_obstacle(self._experiment, row, self._loads_bases)
            for row in rows
        }
        self._rows = dict.fromkeys(complete, DONE)
        self._rows |= {name: f"not run: {why}" if why else WAITING for name, why in obstacles.items()}
        self._report_status(rows=dict(self._rows))
        return [row for row in rows if not obstacles[row.name]]

    def _run_bases(self, rows: Sequence[ExperimentRow]) -> list[str]:
        """Runs the rows of each base, which is loaded for them; returns what went wrong."""
        problems: list[str] = []
        turns = BaseTurns(
            self._parts.bases,
            self._resident_base,
            self._poll,
            lambda text: self._report_status(text=text),
            self._is_closing,
        )
        try:
            for group in self._parts.needs.group_rows(self._experiment, rows):
                loaded = self._load_for(turns, group)
                try:
                    self._run_resident(loaded)
                except Cancelled:
                    raise
                except StudioError as e:
                    problems.append(str(e))
                    for row in loaded:
                        if self._rows[row.name] != DONE:
                            self._set_row(row, f"failed: {e.what}")
        finally:
            problems += filter(None, [turns.restore()])
        return problems

    def _load_for(self, turns: BaseTurns, rows: Sequence[ExperimentRow]) -> list[ExperimentRow]:
        """Loads the base of rows, unless it is resident; returns the rows that can be run on it."""
        needs = self._parts.needs
        if needs.is_resident(self._experiment, rows[0]):
            return list(rows)
        try:
            turns.load(rows[0].base)
        except Cancelled:
            raise
        except StudioError as e:
            for row in rows:
                self._set_row(row, f"not run: the base {row.base!r} is not loaded. {e.what.rstrip('.')}")
            return []
        found = []
        for row in rows:
            if obstacle := needs.explain_obstacle(self._experiment, row, loads_bases=False):
                self._set_row(row, f"not run: {obstacle}")
            else:
                found.append(row)
        return found

    def _set_row(self, row: ExperimentRow, state: str) -> None:
        self._rows[row.name] = state
        self._report_status(rows=dict(self._rows))

    def _report(self, count: int, text: str) -> None:
        self._done += count
        self._report_status(text=text, share=min(0.99, self._done / self._total))

    def _run_resident(self, rows: Sequence[ExperimentRow]) -> None:
        """Runs the cells of the resident base."""
        if not rows:
            return
        spec, questions = self._spec, self._questions
        limit = spec.max_new_tokens or self._choose_length()
        base = self._resident_base.info.name
        general = read_general(self._parts.samples(), base, spec.general_questions)
        cells = []
        for row in rows:
            mix = self._parts.needs.read_mix(row.mix)
            cell = self._open_cell(row, mix, self._describe_conditions(row, mix, general, limit))
            if cell is None:
                self._set_row(row, DONE)
            else:
                self._set_row(row, RUNNING)
                cells.append(cell)
        timed = min(spec.timed_questions, len(questions))
        self._total += len(cells) * (len(general) + timed)
        work = CellWork(
            questions,
            general,
            timed,
            limit,
            self._sources,
            self._parts.search,
            self._poll,
            self._report,
        )
        answering = ResidentCells(self._parts.worker, self._resident_base.get, work)
        memory = answering.run(cells) if cells else 0
        for cell in cells:
            cell.save(self._workspace, self._experiment.id, memory)
            self._set_row(cell.row, DONE)

    def _open_cell(self, row: ExperimentRow, mix: Mix, conditions: dict[str, Any]) -> OpenCell | None:
        """The cell of a row; None where a complete cell of another experiment answers for it."""
        key, experiment = make_key(conditions), self._experiment
        cell = OpenCell(row, mix, conditions, CellLog(self._workspace, experiment.id, key))
        found = None if experiment.is_fresh else find_cell(self._workspace, key)
        if found is not None:
            copied = Cell(**{**found.__dict__, "row": row.to_json()})
            store.save_cell(self._workspace, experiment.id, copied)
            return None
        cell.resume()
        return cell

    def _choose_length(self) -> int:
        """The longest answer, in tokens: the longest reference and some more, in a quarter of the context."""
        spec = self._spec
        rows = self._parts.datasets.rows(spec.dataset, spec.split, spec.limit)

        def choose() -> int:
            from core.evaluate.rows import choose_answer_length

            base = self._resident_base.get().base
            longest = choose_answer_length(base, rows) + EXTRA_TOKENS
            return max(1, min(longest, base.context // 4))

        return self._parts.worker.call(choose)

    def _describe_conditions(
        self, row: ExperimentRow, mix: Mix, general: Sequence[AskedQuestion], limit: int
    ) -> dict[str, Any]:
        """Everything that the answers of a cell depend on."""
        info = self._resident_base.info
        settings = read_documents(row.documents)
        documents: dict[str, Any] = {}
        if settings is not None:
            digests = [self._parts.datasets.get(source).sha256 for source in self._sources]
            documents = {"settings": settings.to_json(), "datasets": digests, "prompt": INSTRUCTION}
        base = {"fingerprint": info.fingerprint, "name": info.name, "quantization": info.quantization}
        return {
            "version": VERSION,
            "rules": [RULE, FACT_RULE],
            "base": {"address": row.address, "model": row.model} if row.address else base,
            "mix": [] if row.address else self._describe_mix(mix),
            "documents": documents,
            "questions": hash_questions(self._questions),
            "general": "" if row.address else hash_questions(general),
            "timed": self._spec.timed_questions,
            "max_new_tokens": limit,
            "versions": _list_versions(),
        }

    def _describe_mix(self, mix: Mix) -> list[Any]:
        """A mix by the sha256 of its adapters, so that a renamed adapter is the same one."""
        parts = []
        for adapter_id, weight in mix.weights.items():
            adapter = self._parts.library.adapter(adapter_id)
            gate = adapter.metadata.get("gate") if adapter_id in mix.auto else None
            auto = mix.auto.get(adapter_id, "")
            parts.append([adapter.sha256, weight, mix.tilt.get(adapter_id, 0.0), auto, gate])
        return sorted(parts, key=str)

    def _run_address(self, row: ExperimentRow) -> None:
        """Answers the questions of a row at its address, one after the other.

        Raises:
            AddressError: the address is down; the answers so far are kept.
        """
        limit = self._spec.max_new_tokens or ADDRESS_TOKENS
        cell = self._open_cell(row, Mix(), self._describe_conditions(row, Mix(), [], limit))
        if cell is None:
            self._set_row(row, DONE)
            return
        self._set_row(row, RUNNING)
        key = self._parts.needs.read_key(row)
        for question in self._questions:
            if question.index in cell.answers:
                continue
            self._poll()
            found = find_passages(self._parts.search, self._sources, question, cell.settings)
            text, prompt = make_writer(question, found)(None)
            answer = ask_address(row, key, [*question.history, {"role": "user", "content": text}], limit)
            seconds = answer.seconds + (found.seconds if found else 0.0)
            if len(cell.timed) < self._spec.timed_questions:
                cell.add_latency(TimedAnswer(question.index, seconds, answer.tokens))
            cell.add_answer(
                question,
                CellAnswer(
                    question.index,
                    question.text,
                    answer.text,
                    question.reference,
                    passages=describe_passages(prompt),
                    reason=answer.reason,
                    tokens=answer.tokens,
                    seconds=answer.seconds,
                ),
            )
            self._report(1, f"Asking {row.model}")
        cell.save(self._workspace, self._experiment.id, 0)
        self._set_row(row, DONE)


def _list_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute answers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
