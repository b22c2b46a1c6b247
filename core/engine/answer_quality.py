"""How good the answers of the last days were: recorded as they end, judged by people."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.errors import NotFound, StorageError
from core.spec.mix import Mix
from core.store import answer_log
from core.store.answer_log import DAYS, AnswerLog, MixFigures
from core.store.event_log import read_all
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.columns import Column

logger = logging.getLogger(__name__)
JUDGED_DAYS = 2  # an answer can be judged on its day and the one after
ID_LIMIT = 80


class AnswerQuality:
    """Records answers and judgements, and summarizes them. Safe to call from any thread."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._log = AnswerLog(workspace)
        self._has_failed = False

    def record(self, answer: str, mixes: Sequence[Mix], columns: Sequence[Column], base: str) -> None:
        """Records the answers to one prompt that have ended. A full disk loses the record, and no answer.

        Args:
            answer: the id of the request; the id of its column i is "<id>-<i>".
            mixes: that were asked for, one per column.
            base: name of the base.
        """
        for i, (mix, column) in enumerate(zip(mixes, columns, strict=True)):
            try:
                self._log.append(
                    "answer",
                    answer=f"{answer}-{i}",
                    mix=str(mix) if mix.weights else "",
                    name=mix.name,
                    base=base,
                    tokens=column.tokens,
                    seconds=round(column.seconds, 4),
                    reason=column.reason,
                    is_empty=not column.text,
                    fallback=str(column.stamp.get("fallback", "")),
                )
            except StorageError as e:
                if not self._has_failed:
                    logger.warning("Answers are not counted: %s", e)
                self._has_failed = True
                return

    def rate(self, answer: str, is_good: bool) -> None:
        """Records a judgement of an answer; the newest one counts.

        Raises:
            NotFound: no such answer of today or yesterday. StorageError: it could not be written.
        """
        now = time.time()
        days = [answer_log.name_day(now - n * answer_log.DAY_SECONDS) for n in range(JUDGED_DAYS)]
        paths = [self._workspace.answers_path(day) for day in days]
        if not any(answer_log.find_answer(read_all(path), answer) for path in paths):
            raise NotFound(
                f"The answer {answer[:ID_LIMIT]!r} is not among those of today and yesterday.",
                "Judge an answer by the id that came with it.",
            )
        self._log.append("rating", answer=answer, good=bool(is_good))

    def summarize(self, days: int = DAYS) -> list[MixFigures]:
        """The figures of every mix that has answered in the last days, the most used first.

        Raises:
            SpecError: not a possible number of days. DamagedRecord: a file cannot be read.
        """
        return answer_log.summarize(self._workspace, days)
