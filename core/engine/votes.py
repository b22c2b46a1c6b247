"""Votes of blind tests. `engine.votes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import NotFound
from core.spec.mix import Mix
from core.store import adapters, votes
from core.store.csv_tables import format_csv
from core.store.votes import Standing, Vote
from core.store.workspace import Workspace


class Votes:
    """Records and counts votes. Safe to call from any thread."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def cast(
        self,
        prompt: str,
        stamps: Sequence[dict[str, Any]],
        chosen: int | None,
        mixes: Sequence[Mix] = (),
    ) -> Vote:
        """Records a vote on answers, identified by their stamps.

        Args:
            chosen: the position of the chosen answer; None for no difference.
            mixes: of the answers, in their order. A mix with a weight on Auto is identified by its gates, not
                by what they chose for this prompt.

        Raises:
            SpecError: fewer than two answers, one without a stamp, or no such position.
        """
        requested = [*mixes, *([Mix()] * (len(stamps) - len(mixes)))]
        described = [self._describe(s, m) for s, m in zip(stamps, requested, strict=True)]
        return votes.cast(self._workspace, prompt, described, chosen)

    def _describe(self, stamp: dict[str, Any], mix: Mix) -> dict[str, Any]:
        """The stamp with the weights that were requested, where some of them are on Auto."""
        if not mix.auto or "weights" not in stamp:
            return stamp
        known = stamp.get("adapters", {})
        digests = {a: known.get(a) or self._find_digest(a) for a in mix.weights}
        return {**stamp, "weights": mix.weights, "tilt": mix.tilt, "adapters": digests, "gates": mix.auto}

    def _find_digest(self, adapter_id: str) -> str:
        try:
            return adapters.load(self._workspace, adapter_id).sha256
        except NotFound:
            return "in training"

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
