"""Experiments that are often useful: four rows that say what helps, and the series of two sizes of base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.spec.experiment import OFF, ON, ExperimentRow, ExperimentSpec

WHAT_HELPS = "Does training help, does retrieval help?"
STUFFED = "on:20"  # as many passages as a large context holds
OPENAI = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"


def ask_what_helps(
    dataset: str, mix: str, sources: Sequence[str] = (), changes: dict[str, Any] | None = None
) -> ExperimentSpec:
    """Base, base + documents, mix, and mix + documents on the same questions.

    Args:
        mix: as `Mix.parse` reads it.
        changes: other settings of the experiment.
    """
    settings = {"name": WHAT_HELPS, "dataset": dataset, "sources": tuple(sources), **(changes or {})}
    return ExperimentSpec(mixes=("", mix), documents=(OFF, ON), **settings)


def plan_size_series(
    dataset: str, small_mix: str, large_mix: str, sources: Sequence[str] = (), name: str = "Two sizes"
) -> ExperimentSpec:
    """Retrieval, adapter and both on a base of 0.5B and on one of 3B, and a hosted model as the ceiling.

    The sizes are groups of their own. A row whose base is not loaded, or whose address has no key, is not
    run until it is.

    Args:
        small_mix, large_mix: the adapters of both sizes, as `Mix.parse` reads them.
    """
    rows: list[ExperimentRow] = []
    for size, tag, ending, mix in (
        ("0.5", "0p5", "instruct", small_mix),
        ("3", "3b", "instruct-q4_K_M", large_mix),
    ):
        served, hub, group = f"qwen2.5:{size}b-{ending}", f"Qwen/Qwen2.5-{size}B-Instruct", f"{size}B"
        rows += [
            ExperimentRow(f"rag_baseline_{tag}", base=served, documents=ON, group=group),
            ExperimentRow(f"lora_science_{tag}_ft", mix, base=hub, group=group),
            ExperimentRow(f"hybrid_science_{tag}", mix, ON, served, group),
        ]
    cloud = ExperimentRow("cloud_eval_v1", "", STUFFED, "", "cloud", OPENAI, "gpt-4o", KEY_VARIABLE)
    return ExperimentSpec(name=name, dataset=dataset, sources=tuple(sources), rows=(*rows, cloud))
