"""Prompts to try, from the user's own held-out data: questions of task data, beginnings of domain texts.

The evaluation-only datasets come first, then the test splits of what the active adapters were trained on. The
sample's questions are offered only to the adapters that were trained on the sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import StudioError
from studio import samples
from studio.tree import Node, button, node

LIMIT = 4  # prompts that are offered
ROWS_READ = 40  # rows of a split that prompts are taken from
SHORT, LONG = 28, 72  # characters of a text's beginning
LABEL_LENGTH = 64
KNOWN_LIMIT = 200  # splits whose prompts are remembered: every page that opens shows some
_known_prompts: dict[str, list[str]] = {}  # by the content of a dataset and the split


@dataclass(frozen=True)
class Chip:
    """A prompt to try.

    Attributes:
        continue_text: the prompt is the beginning of a text.
        dataset: the name of the dataset that it comes from.
    """

    text: str
    continue_text: bool
    dataset: str


def list_chips(engine: Engine, adapter_ids: Iterable[str]) -> list[Chip]:
    """Prompts to try on mixes of these adapters.

    Questions where one of the adapters was trained on questions, else beginnings of texts. Without an
    adapter, the newest adapter that fits the base decides.

    Args:
        adapter_ids: adapters that are on; unknown ids are skipped.
    """
    adapters = {a.id: a for a in engine.library.mixable_adapters()}
    active = [adapters[i] for i in dict.fromkeys(adapter_ids) if i in adapters]
    active = active or [a for a in list(adapters.values())[-1:] if a.fits]
    datasets = {d.id: d for d in engine.datasets.list()}
    trained: list[Any] = []
    kinds = set()  # of what the user's own adapters were trained on
    for adapter in active:
        known = _training_data(engine, adapter, datasets)
        trained += known
        kinds |= {d.kind for d in known if not samples.is_sample(d)}
        if not known:
            kinds.add(adapter.kind)
    held_out = [d for d in datasets.values() if d.purpose == "evaluation" and d.kind in kinds]
    own = [d for d in [*held_out, *trained] if not samples.is_sample(d)]
    sample = [d for d in trained if samples.is_sample(d)]
    if any(d.kind == "task" for d in sample):
        sample = [*(datasets[i] for i in samples.list_held_out(engine) if i in datasets), *sample]
    for kind in ("task", "domain"):
        ordered = {d.id: d for d in [*own, *sample] if d.kind == kind}
        if chips := _take(engine, list(ordered.values())):
            return chips
    return []


def _training_data(engine: Engine, adapter: Any, datasets: dict[str, Any]) -> list[Any]:
    """The datasets that an adapter was trained on; of a baked adapter, those of all its parts."""
    if adapter.dataset or adapter.training:
        return [datasets[adapter.dataset]] if adapter.dataset in datasets else []
    try:
        known = engine.library.adapter(adapter.id).training_data
    except StudioError:  # deleted or damaged since
        return []
    return [d for d in datasets.values() if d.id in known or d.sha256 in known]


def _take(engine: Engine, datasets: Sequence[Any]) -> list[Chip]:
    """At most LIMIT different prompts of datasets of one kind; the first dataset fills what it can."""
    chips: dict[str, Chip] = {}
    for dataset in datasets:
        for text in _prompts(engine, dataset):
            chips.setdefault(text, Chip(text, dataset.kind == "domain", dataset.name))
            if len(chips) == LIMIT:
                return list(chips.values())
    return list(chips.values())


def _prompts(engine: Engine, dataset: Any) -> Iterator[str]:
    """Prompts of the held-out rows of a dataset; rows of different types take turns."""
    split = "all" if dataset.id in samples.list_held_out(engine) else "test"
    key = f"{dataset.sha256} {split} {dataset.split_sha256}"
    if key not in _known_prompts:
        try:
            rows = engine.datasets.rows(dataset.id, split, ROWS_READ)
        except StudioError:  # deleted or damaged since
            return
        if len(_known_prompts) >= KNOWN_LIMIT:
            _known_prompts.clear()
        _known_prompts[key] = list(_alternate(rows))
    yield from _known_prompts[key]


def _alternate(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The prompts of rows; those of different types take turns."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get("type", "")), []).append(row)
    for row in chain.from_iterable(zip_longest(*groups.values())):
        text = _prompt_of(row) if row else ""
        if text:
            yield text


def _prompt_of(row: dict[str, Any]) -> str:
    """The first question of a conversation, or the beginning of a text."""
    if "messages" in row:
        return next((str(m["content"]).strip() for m in row["messages"] if m["role"] == "user"), "")
    return begin_text(str(row.get("text", "")))


def begin_text(text: str) -> str:
    """The first words of a text: up to about LONG characters, at the end of a word; "" for a short text."""
    text = text.strip()
    if len(text) < SHORT:
        return ""
    words = [m.end() for m in re.finditer(r"\S+", text[: LONG + 1])]
    ends = [end for end in words if SHORT <= end <= min(LONG, len(text) * 2 // 3)]
    return text[: ends[-1]] if ends else ""


def render_chips(chips: Sequence[Chip]) -> Node | None:
    """Buttons that put a prompt into its field."""
    if not chips:
        return None
    lead = "Continue a held-out text:" if chips[0].continue_text else "Try a held-out question:"
    buttons = [
        button(
            _label(chip.text),
            {"prompt": chip.text, "continue_text": chip.continue_text},
            "chip-button",
            title=f"{chip.text}\n(from {chip.dataset})",
        )
        for chip in chips
    ]
    return node("div", node("span", lead, cls="quiet"), *buttons, cls="prompt-chips", role="group")


def _label(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LABEL_LENGTH else line[: LABEL_LENGTH - 1] + "…"


def read_chip(event: gr.EventData) -> tuple[str, bool]:
    """The prompt of a pressed chip, and whether it is the beginning of a text."""
    data = event._data if isinstance(event._data, dict) else {}
    return str(data.get("prompt", "")), bool(data.get("continue_text"))


def suggest_mode(engine: Engine, adapter_ids: Iterable[str]) -> bool:
    """Whether only domain adapters are on, so that a prompt is the beginning of a text."""
    kinds = {a.id: a.kind for a in engine.library.mixable_adapters()}
    active = {kinds[i] for i in adapter_ids if i in kinds}
    return active == {"domain"}
