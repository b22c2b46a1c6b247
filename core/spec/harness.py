"""Settings of EleutherAI's lm-evaluation-harness on mixes."""

from __future__ import annotations

from dataclasses import dataclass

from core.spec.mix import NEW_TOKENS_LIMIT
from core.spec.settings import Settings, setting


@dataclass(frozen=True)
class HarnessSettings(Settings):
    """Which tasks are run, and how."""

    tasks: tuple[str, ...] = setting((), "Tasks or groups of the lm-evaluation-harness, such as arc_easy.")
    limit: int = setting(0, "At most this many rows of each task; 0 means all.", low=0, high=10**9)
    shots: int = setting(
        -1, "Solved examples before each question; -1 takes the task's own number.", low=-1, high=1000
    )
    chat_template: bool = setting(False, "Puts every prompt into the base's chat template.")
    max_new_tokens: int = setting(
        0,
        "Longest answer, in tokens, instead of the task's own; 0 keeps it.",
        low=0,
        high=NEW_TOKENS_LIMIT,
        label="Longest answer (tokens)",
    )
    tasks_folder: str = setting(
        "", "Folder with tasks of your own, as YAML files of the harness. Such a file can run Python code."
    )
    resamples: int = setting(
        100_000, "Resamples for the standard errors that need a bootstrap.", low=2, high=10**6
    )
