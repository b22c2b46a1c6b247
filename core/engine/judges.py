"""Judges of experiments, and what people say about the same answers. `engine.judges`.

    complete rows ─> different answers ─┬─ a judge ─> judge-<key>.jsonl ─┐
                                        └─ people ─> votes.jsonl ────────┴─> kappa ─> figures, if it is enough

A judge reads answers that are there; it never changes a row. Each verdict is on the disk before the next
answer is read, so a judge that was stopped or killed continues where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from core.engine.background_jobs import BackgroundJobs, InProcessJob, JobStatus
from core.engine.experiment_address import AddressError, ask_address
from core.engine.experiment_results import ExperimentResults
from core.engine.experiments import Experiments
from core.engine.judge_results import make_judge_result
from core.engine.library import Library
from core.engine.resident_base import ResidentBase
from core.engine.worker import Stream, Worker
from core.errors import BaseModelError, Busy, NotFound, SpecError, StudioError
from core.evaluate.judging import (
    VERSION,
    ShownAnswer,
    choose_order,
    list_answers,
    read_verdict,
    write_prompt,
)
from core.spec.fixed_weights import require_numbers
from core.spec.judge import CRITERIA, NEEDED_VOTES, SKIP, UNREADABLE, VERDICTS, JudgeSpec
from core.spec.mix import Mix
from core.store.judgements import (
    REPLY_LIMIT,
    JudgeLog,
    PersonVote,
    StoredJudge,
    Verdict,
    append_vote,
    list_judges,
    read_votes,
)
from core.store.workspace import Workspace

ENDED_LIMIT = 50  # ended jobs whose status is kept
EARLY = 10  # answers after which a judge is stopped that answered more than half of them with nonsense
SHOWN_REPLY = 80  # characters of a reply in a message
KEPT = "Its verdicts are kept."


@dataclass(frozen=True)
class JudgeStatus(JobStatus):
    """The work of a judge on an experiment.

    Attributes:
        name: of the judge.
        share: the finished part of the work, from 0 to 1.
        read, unreadable: answers with a verdict since the start, and those that are neither Good nor Poor.
        state, text, problem, error: as in `JobStatus`.
    """

    experiment_id: str
    name: str
    state: str = "waiting"
    text: str = "Waiting for another judge"
    share: float = 0.0
    read: int = 0
    unreadable: int = 0
    problem: str = ""
    error: StudioError | None = None


@dataclass(kw_only=True)
class JudgeJob(InProcessJob):
    """The work of a judge."""

    status: JudgeStatus


@dataclass(frozen=True)
class Ballot:
    """The next answer that a person may judge.

    Attributes:
        answer: None where every answer is judged or skipped.
        criteria: by which it is judged.
        count: answers that people have judged by these criteria; `needed` are needed.
    """

    answer: ShownAnswer | None
    criteria: str
    count: int
    needed: int = NEEDED_VOTES


class Judges:
    """Starts judges, takes the votes of people, and compares both. Safe to call from any thread."""

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        library: Library,
        experiments: Experiments,
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._library, self._experiments = library, experiments
        self._jobs: BackgroundJobs[JudgeJob] = BackgroundJobs("judge", ENDED_LIMIT)

    # --- the work

    def start(self, experiment_id: str, spec: JudgeSpec) -> str:
        """Starts a judge on the answers of an experiment that it has not read; returns its key at once.

        Raises:
            NotFound, DamagedRecord. Busy: a judge is reading this experiment.
            SpecError: no row is complete, a key is missing, or the mix cannot judge. BaseModelError
        """
        status = self.status(experiment_id)
        if status is not None and not status.has_ended:
            raise Busy(f"The judge {status.name!r} is reading this experiment.", "Wait, or stop it.")
        if not self._list_answers(experiment_id):
            raise SpecError(
                "The experiment has no complete row, so there is nothing to judge.", "Run it first."
            )
        mix = self._read_mix(spec)
        conditions = self._describe_conditions(spec, mix)
        covered = json.dumps(conditions, sort_keys=True).encode()
        judge = StoredJudge(hashlib.sha256(covered).hexdigest()[:16], spec.to_json(), conditions)
        log = JudgeLog(self._workspace, experiment_id, judge)
        self._jobs.start(
            JudgeJob(
                key=experiment_id,
                status=JudgeStatus(experiment_id, spec.label),
                work=lambda job: self._run(job, judge, mix, log),
            )
        )
        return judge.key

    def status(self, experiment_id: str) -> JudgeStatus | None:
        """The newest work on an experiment; None where there was none since the engine was opened."""
        job = self._jobs.get(experiment_id)
        return job.status if job else None

    def cancel(self, experiment_id: str) -> None:
        """Stops the work; the verdicts stay, and another `start` continues there.

        Raises:
            NotFound
        """
        self._jobs.cancel(experiment_id)

    def wait(self, experiment_id: str, seconds: float | None = None) -> JudgeStatus:
        """Waits until the work has ended, at most so long.

        Raises:
            NotFound
        """
        return self._jobs.wait(experiment_id, seconds).status

    def close(self) -> None:
        """Stops every judge."""
        self._jobs.close()

    # --- people

    def draw(self, experiment_id: str, criteria: str = "") -> Ballot:
        """The next answer for a person, without the name of its row.

        Rows are drawn evenly; answers that a judge has read come first.

        Args:
            criteria: "" takes those of the newest judge, or the usual ones.

        Raises:
            NotFound, DamagedRecord
        """
        return self._draw(experiment_id, self._list_answers(experiment_id), criteria)

    def _draw(self, experiment_id: str, shown: Sequence[ShownAnswer], criteria: str) -> Ballot:
        judges = list_judges(self._workspace, experiment_id)
        criteria = criteria or next((j.settings.criteria for j, _ in reversed(judges)), CRITERIA)
        votes = read_votes(self._workspace, experiment_id, criteria)
        read = {key for judge, verdicts in judges if judge.settings.criteria == criteria for key in verdicts}
        counts = Counter(row for s in shown if votes.get(s.key) in VERDICTS for row in s.rows)

        def rank(answer: ShownAnswer) -> tuple[bool, int, bytes]:
            """Answers that a judge has read, then the row with the fewest votes, then by chance."""
            draw = hashlib.sha256(f"{experiment_id} {answer.key}".encode()).digest()
            return answer.key not in read, min(counts[row] for row in answer.rows), draw

        left = [s for s in shown if s.key not in votes]
        count = sum(votes.get(s.key) in VERDICTS for s in shown)
        return Ballot(min(left, key=rank, default=None), criteria, count)

    def vote(self, experiment_id: str, answer: str, verdict: str, criteria: str = "") -> Ballot:
        """Stores what a person says about an answer, and draws the next one.

        Args:
            answer: the key of a `ShownAnswer`.
            verdict: "good", "poor", or "skip", which does not count.
            criteria: as in `draw`.

        Raises:
            NotFound: the experiment, or an answer of it. SpecError: another verdict.
        """
        if verdict not in (*VERDICTS, SKIP):
            raise SpecError(
                f'A verdict must be "good", "poor" or "skip", got {verdict!r}.', "Give one of them."
            ).at("verdict")
        shown = self._list_answers(experiment_id)
        if answer not in {s.key for s in shown}:
            raise NotFound(f"The experiment has no answer {answer!r}.", "Draw an answer, and give its key.")
        criteria = criteria or self._draw(experiment_id, shown, "").criteria
        append_vote(self._workspace, experiment_id, PersonVote(answer, verdict, criteria))
        return self._draw(experiment_id, shown, criteria)

    # --- both

    def results(self, experiment_id: str) -> ExperimentResults:
        """The table of an experiment with its judges.

        Raises:
            NotFound, DamagedRecord
        """
        results = self._experiments.results(experiment_id)
        shown = list_answers({row.name: row.cell for row in results.rows if row.cell is not None})
        seed = results.experiment.settings.seed
        judges = []
        for judge, verdicts in list_judges(self._workspace, experiment_id):
            votes = read_votes(self._workspace, experiment_id, judge.settings.criteria)
            judges.append(make_judge_result(judge, verdicts, shown, votes, seed))
        return dataclasses.replace(results, judges=tuple(judges))

    def _list_answers(self, experiment_id: str) -> list[ShownAnswer]:
        return list_answers(self._experiments.cells(experiment_id))

    # --- what a judge needs

    def _read_mix(self, spec: JudgeSpec) -> Mix:
        """The mix of a judge; of an address the base, which is not used.

        Raises:
            SpecError: its adapters were trained on another base, or its address needs a key that is missing.
            BaseModelError: no base is loaded. NotFound: an adapter.
        """
        if spec.address:
            if spec.key_variable and not self._experiments.read_variable(spec.key_variable):
                raise SpecError(
                    f"No key is in the environment variable {spec.key_variable}, which the terminal reads.",
                    "Set it, and start the judge in the terminal.",
                ).at("key_variable")
            return Mix()
        mix, info = self._experiments.read_mix(spec.mix), self._resident_base.wait()
        require_numbers(mix, "A judge")
        if not info.fingerprint:
            raise BaseModelError("No base is loaded, so no mix can judge.", "Load a base first.")
        for adapter in map(self._library.adapter, mix.weights):
            if adapter.base_fingerprint != info.fingerprint:
                raise SpecError(
                    f"The adapter {adapter.name!r} was trained on another base than {info.name!r}.",
                    "Load its base, or choose another judge.",
                ).at("mix")
        return mix

    def _describe_conditions(self, spec: JudgeSpec, mix: Mix) -> dict[str, Any]:
        """Everything that the verdicts depend on, beside the answers."""
        known: dict[str, Any] = {"version": VERSION, "criteria": spec.criteria}
        if spec.address:
            return {**known, "address": spec.address, "model": spec.model, "limit": spec.max_new_tokens}
        info, parts = self._resident_base.info, []
        for adapter_id, weight in mix.weights.items():
            digest = self._library.adapter(adapter_id).sha256
            parts.append([digest, weight, mix.tilt.get(adapter_id, 0.0)])
        base = {"fingerprint": info.fingerprint, "name": info.name, "quantization": info.quantization}
        return {**known, "base": base, "mix": sorted(parts, key=str)}

    # --- on the job's thread

    def _run(self, job: JudgeJob, judge: StoredJudge, mix: Mix, log: JudgeLog) -> dict[str, Any]:
        spec, experiment_id = judge.settings, job.key
        shown, known = self._list_answers(experiment_id), log.read()
        votes = read_votes(self._workspace, experiment_id, spec.criteria)
        # Answers with a verdict come first, so that they are among the limited number; then those of people.
        shown.sort(key=lambda s: (s.key not in known, s.key not in votes, s.index))
        chosen = shown[: spec.limit or len(shown)]
        pending = [s for s in chosen if s.key not in known or known[s.key].verdict == UNREADABLE]
        references = sorted({s.reference for s in shown if s.reference.strip()})
        if spec.address:
            verdicts = self._read_at_address(job, spec, pending)
        else:
            verdicts = self._read_with_mix(job, judge, mix, pending, references)
        read = unreadable = 0
        for verdict in verdicts:
            log.append(verdict)
            read, unreadable = read + 1, unreadable + (verdict.verdict == UNREADABLE)
            job.set_status(
                text="Judging the answers", share=read / len(pending), read=read, unreadable=unreadable
            )
            if read == min(EARLY, len(pending)) and unreadable > read / 2:
                raise StudioError(
                    f"The judge {spec.label!r} gave {unreadable} of its first {read} answers no verdict; the "
                    f"last reply: {verdict.reply[:SHOWN_REPLY]!r}.",
                    f"{KEPT} Choose a judge that replies with Good or Poor.",
                )
        return {"share": 1.0, "text": _describe_end(read, unreadable)}

    def _read_at_address(
        self, job: JudgeJob, spec: JudgeSpec, pending: Sequence[ShownAnswer]
    ) -> Iterator[Verdict]:
        """Asks the address about one answer after the other.

        Raises:
            AddressError: the address is down.
        """
        key = self._experiments.read_variable(spec.key_variable) or "" if spec.key_variable else ""
        for shown in pending:
            self._jobs.poll_cancel(job)
            text = write_prompt(shown, spec.criteria, choose_order(shown))
            messages = [{"role": "user", "content": text}]
            try:
                reply = ask_address(spec.row, key, messages, spec.max_new_tokens).text
            except AddressError as e:
                fix = f"{KEPT} Start the judge again when the address answers."
                raise AddressError(e.what, fix) from e
            yield Verdict(shown.key, read_verdict(reply), 0.0, reply[:REPLY_LIMIT])

    def _read_with_mix(
        self,
        job: JudgeJob,
        judge: StoredJudge,
        mix: Mix,
        pending: Sequence[ShownAnswer],
        references: Sequence[str],
    ) -> Iterator[Verdict]:
        """Verdicts from the likelihoods of a mix, as soon as each is known."""
        fingerprint = judge.conditions["base"]["fingerprint"]

        def work() -> Iterator[Any]:
            from core.evaluate.judge_scoring import judge_answers

            done: tuple[Verdict, ...] = ()  # a stream keeps its newest value only
            resident = self._resident_base.get()
            if self._resident_base.info.fingerprint != fingerprint:  # it was changed since the start
                raise StudioError("The base was changed.", f"{KEPT} Start the judge again.")
            for part in judge_answers(resident, mix, pending, judge.settings.criteria, references):
                done += tuple(part or ())
                yield done if part is not None else None

        stream = Stream(lambda: self._worker.is_running)
        self._worker.attach(stream, work)  # type: ignore[arg-type]
        count = 0
        try:
            for done in stream:
                yield from done[count:]
                count = len(done)
                self._jobs.poll_cancel(job)
        finally:
            stream.close()
        if count < len(pending):
            raise StudioError("The verdicts ended early.", f"{KEPT} Start the judge again.")


def _describe_end(read: int, unreadable: int) -> str:
    if not read:
        return "Every answer has a verdict already"
    return f"{read} answers judged" + (f", {unreadable} without a verdict" if unreadable else "")
