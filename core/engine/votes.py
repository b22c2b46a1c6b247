"""Votes of blind tests. `engine.votes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.store import votes
from core.store.csv_tables import format_csv
from core.store.votes import Standing, Vote
from core.store.workspace import Workspace


class Votes:
    """Records and counts votes. Safe to call from any thread."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def cast(self, prompt: str, stamps: Sequence[dict[str, Any]], chosen: int | None) -> Vote:
        """Records a vote on answers, identified by their stamps.

        Args:
            chosen: the position of the chosen answer; None for no difference.

        Raises:
            SpecError: fewer than two answers, one without a stamp, or no such position.
        """
        return votes.cast(self._workspace, prompt, stamps, chosen)

    def withdraw(self, vote_id: str) -> None:
        """Withdraws one vote.

        Raises:
            NotFound: unknown vote, or already withdrawn.
        """
        votes.withdraw(self._workspace, vote_id)

    def reset(self) -> None:
        """Deletes every vote."""
        votes.reset(self._workspace)

    def tally(self) -> list[Standing]:
        """The standing of every mix after all votes, the best first."""
        return votes.tally(votes.load_all(self._workspace))

    def csv(self) -> str:
        """Every vote as CSV, one row per answer."""
        return format_csv(votes.make_rows(votes.load_all(self._workspace)))
