"""What the adapter of a run is worth on held-out rows: runs/<id>/worth.json.

The file is optional: runs of earlier versions have none, and a run whose measurement failed has a note.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import DamagedRecord
from core.store.files import write_json
from core.store.record_types import Count, Figure, Seconds
from core.store.records import read_record
from core.store.workspace import Workspace

RECORD = "worth.json"
BETTER, UNCLEAR, WORSE = "better", "unclear", "worse"
# Figure -> (label, whether a lower value is better, factor and decimals for a reader)
FIGURES: dict[str, tuple[str, bool, float, int]] = {
    "f1": ("F1", False, 100.0, 1),
    "exact_match": ("Exact match", False, 100.0, 1),
    "bits_per_byte": ("Bits per byte", True, 1.0, 3),
    "bits_per_token": ("Bits per token", True, 1.0, 3),
}


@dataclass(frozen=True)
class Gain:
    """One figure of the base and of the adapter on the same rows.

    Attributes:
        name: a key of FIGURES.
        gain: how much better the adapter is; above 0 is better, also where a lower figure is better.
        low, high: 95 % interval of `gain`, from a bootstrap over the rows.
        rows: how many were measured.
    """

    name: str
    base: Figure
    adapter: Figure
    gain: Figure
    low: Figure
    high: Figure
    rows: Count

    @property
    def verdict(self) -> str:
        """BETTER or WORSE where the interval lies on one side of 0, otherwise UNCLEAR."""
        if self.low > 0:
            return BETTER
        return WORSE if self.high < 0 else UNCLEAR

    def describe(self) -> str:
        """The figure for a reader: "F1 on 30 held-out rows: 14.7 (base) -> 78.2 (adapter), ..."."""
        label, lower, factor, digits = FIGURES.get(self.name, (self.name, False, 1.0, 3))

        def show(value: float, sign: str = "") -> str:
            return f"{factor * value:{sign}.{digits}f}"

        direction = " Lower is better." if lower else ""
        signed = (-self.high, -self.low, -self.gain) if lower else (self.low, self.high, self.gain)
        low, high, change = (show(v, "+") for v in signed)
        return (
            f"{label} on {self.rows} held-out row{'' if self.rows == 1 else 's'}: {show(self.base)} (base) → "
            f"{show(self.adapter)} (adapter), a change of {change} "
            f"(95 % interval {low} to {high}).{direction}"
        )


@dataclass(frozen=True)
class Example:
    """A held-out question or opening, with the answers of the base and of the adapter."""

    prompt: str
    base: str
    adapter: str
    reference: str


@dataclass(frozen=True)
class Worth:
    """The content of worth.json.

    Attributes:
        main: the figure that decides the verdict; None where nothing could be measured.
        others: further figures on the same rows.
        examples: up to five rows, with both answers.
        split: "test" or "val", from which the rows come.
        partial: the time was up before all chosen rows were measured.
        note: why something is missing, as a sentence, or "".
    """

    main: Gain | None = None
    others: tuple[Gain, ...] = ()
    examples: tuple[Example, ...] = ()
    split: str = ""
    seconds: Seconds = 0.0
    partial: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """BETTER, UNCLEAR or WORSE; "" where nothing was measured."""
        return self.main.verdict if self.main else ""


def path_of(workspace: Workspace, run_id: str) -> Path:
    """The path of the file."""
    return workspace.path("runs", run_id, RECORD)


def save(workspace: Workspace, run_id: str, worth: Worth) -> None:
    """Writes the record of an existing run.

    Raises:
        StorageError
    """
    write_json(path_of(workspace, run_id), asdict(worth))


def load(workspace: Workspace, run_id: str) -> Worth | None:
    """Reads the record of a run; None where there is none, or it cannot be read."""
    path = path_of(workspace, run_id)
    if not path.is_file():
        return None
    try:
        return read_record(path, Worth)
    except DamagedRecord:  # it is measured again with the Evaluate page, and the run itself is intact
        return None
