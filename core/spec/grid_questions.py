"""Settings of the experiment that a grid ends in: which questions it asks the adapters."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import SpecError
from core.spec.experiment import OFF, ROWS_LIMIT, SPLITS, read_documents
from core.spec.settings import Settings, setting


@dataclass(frozen=True)
class GridQuestions(Settings):
    """The questions that every adapter of a grid answers once the last cell has ended."""

    dataset: str = setting("", "The dataset with the questions.", high=120)
    split: str = setting("test", "The split of the dataset.", choices=SPLITS)
    limit: int = setting(0, "At most this many questions; 0 means all.", low=0, high=1_000_000)
    documents: str = setting(
        OFF, 'Whether every adapter also answers with documents: "off", "on", or "on:8".', high=400
    )
    sources: tuple[str, ...] = setting(
        (), "Datasets that passages are searched in; none means all documents."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_documents(self.documents)
        if not self.dataset:
            raise SpecError(
                "The questions must have a dataset, got none.", "Choose a dataset of questions."
            ).at("dataset")

    @property
    def has_documents(self) -> bool:
        """Whether every adapter also answers with documents."""
        return read_documents(self.documents) is not None

    def check_cells(self, count: int) -> None:
        """Checks that an experiment has room for a grid: two rows of the base, and one or two for each cell.

        Raises:
            SpecError: it does not.
        """
        rows = 2 + count * (2 if self.has_documents else 1)
        if rows > ROWS_LIMIT:
            fix = (
                "Vary fewer values, or ask without documents." if self.has_documents else "Vary fewer values."
            )
            raise SpecError(
                f"An experiment has at most {ROWS_LIMIT} rows, and {count} cells would have {rows}.", fix
            )
