"""Settings of a judge: what reads the answers of an experiment afterwards and says Good or Poor of each.

A judge is a mix on the base that is loaded, or a model at an OpenAI-compatible address. Its verdicts count
only where they agree with those of people (`NEEDED_VOTES`, `KAPPA_FLOOR`).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import SpecError
from core.spec.experiment import ExperimentRow
from core.spec.settings import Settings, setting

GOOD, POOR = "good", "poor"
UNREADABLE = "unreadable"  # a reply that is neither, or a question that does not fit in the context
SKIP = "skip"  # what a person may say instead; it does not count
VERDICTS = (GOOD, POOR)
NEEDED_VOTES = 30  # answers that a person and the judge have both judged, before its verdicts may count
KAPPA_FLOOR = 0.4  # the lower end of kappa's interval must lie above; Landis and Koch (1977): moderate begins
CRITERIA = "An answer is Good if it says what the reference answer says, and Poor if it does not."
CRITERIA_LIMIT = 1000  # characters


@dataclass(frozen=True)
class JudgeSpec(Settings):
    """A judge: a mix or an address, its criteria, and how many answers it reads.

    The sentences and the checks of an address are those of a row of an experiment.

    Example:
        >>> JudgeSpec(mix="notes=1", limit=40).label
        'notes=1'
    """

    mix: str = setting("", 'The mix that judges, such as "notes=0.7,tone=1"; "" is the base.')
    address: str = setting("", "An OpenAI-compatible address that judges in place of a mix.", high=400)
    model: str = setting("", "The name of the model at the address.", high=200)
    key_variable: str = setting(
        "", "The environment variable with the key for the address; the key itself is never stored.", high=120
    )
    limit: int = setting(0, "At most this many answers; 0 means all.", low=0, high=1_000_000)
    criteria: str = setting(CRITERIA, "When an answer is Good, and when it is Poor.", high=CRITERIA_LIMIT)
    max_new_tokens: int = setting(
        16,
        "Longest reply of the address, in tokens; a model that thinks first needs more.",
        low=1,
        high=16_384,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix and self.address:
            raise SpecError("A judge must be a mix or an address, got both.", "Give one of them.").at("mix")
        if not self.criteria.strip():
            raise SpecError(
                "The criteria must say when an answer is Good, got an empty text.",
                "Leave them out for the default.",
            ).at("criteria")
        _ = self.row  # checks the mix and the address

    @property
    def row(self) -> ExperimentRow:
        """The judge as a row that could answer questions: where its mix or its address is checked."""
        return ExperimentRow(
            mix=self.mix, address=self.address, model=self.model, key_variable=self.key_variable
        )

    @property
    def label(self) -> str:
        """Its model, its mix, or "base"."""
        return self.row.label
