"""The rule by which a mix may become `production`."""

from __future__ import annotations

from dataclasses import dataclass

from core.spec.settings import Settings, setting

PRODUCTION = "production"  # the name that the APIs serve


@dataclass(frozen=True)
class PromotionRule(Settings):
    """When a row of an experiment may be promoted, against its baseline."""

    baseline: str = setting(
        "", 'The row that it must beat; "" is the base with documents of the same group.', high=120
    )
    factuality_gain: float = setting(
        5.0,
        "Percentage points of factuality above the baseline, at the lower end of the 95 % interval.",
        low=-99,
        high=99,
        label="Factuality gain (points)",
    )
    citation_coverage: float = setting(
        0.35, "Mean share of sentences with a citation that supports them, at least.", low=0, high=1
    )
    forgetting: float = setting(
        5.0,
        "Percentage points of F1 on general questions below the baseline, at most.",
        low=0,
        high=99,
        label="Forgetting (points)",
    )
    latency_ratio: float = setting(
        1.5, "Median latency divided by that of the baseline, at most.", low=0.1, high=100
    )
    minimum_questions: int = setting(30, "Questions that both rows must have answered.", low=2, high=100_000)
