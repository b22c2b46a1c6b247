"""What a Space shows: adapters and saved mixes of a workspace, and the base that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.errors import NotFound, SpecError
from core.store import adapters, mixes
from core.store.adapters import Adapter
from core.store.base_models import HUB_ID
from core.store.converted_bases import DIGEST_DIGITS
from core.store.known_bases import KNOWN_BASES
from core.store.mixes import SavedMix
from core.store.workspace import Workspace

EMBEDDED = "embedded"
LISTED = 20  # items that an error names

Item = TypeVar("Item", Adapter, SavedMix)


@dataclass(frozen=True)
class Selection:
    """What is chosen from a workspace.

    Attributes:
        adapters: in the order in which they were named; then those that mixes and adapters need.
        notes: what was added or is missing, one sentence each.
    """

    adapters: tuple[Adapter, ...] = ()
    mixes: tuple[SavedMix, ...] = ()
    notes: tuple[str, ...] = ()


def select(workspace: Workspace, adapter_names: Sequence[str], mix_names: Sequence[str]) -> Selection:
    """Finds adapters and mixes. A mix brings its adapters, and an adapter the one that it was trained on.

    Args:
        adapter_names, mix_names: ids or display names.

    Raises:
        NotFound: the workspace has no such item. SpecError: an adapter of a mix was deleted or has changed.
    """
    library, saved = adapters.load_all(workspace), mixes.load_all(workspace)
    by_id = {a.id: a for a in library}
    chosen_mixes = {m.id: m for m in (_find("mix", name, saved) for name in mix_names)}
    chosen = {a.id: a for a in (_find("adapter", name, library) for name in adapter_names)}
    notes = []
    for mix in chosen_mixes.values():
        if mix.warnings:
            raise SpecError(
                f"The mix {mix.name!r} cannot be copied. {mix.warnings[0]}",
                "Save the mix again with adapters of the library, or leave it out.",
            )
        chosen.update({a: by_id[a] for a in mix.weights if a not in chosen})
    waiting = list(chosen.values())
    while waiting:
        adapter = waiting.pop()
        if not adapter.stacked_on or adapter.stacked_on in chosen:
            continue
        parent = by_id.get(adapter.stacked_on)
        if parent is None:
            notes.append(f"{adapter.name!r} was trained on top of an adapter that was deleted.")
            continue
        notes.append(f"{parent.name!r} was added: {adapter.name!r} was trained on top of it.")
        chosen[parent.id] = parent
        waiting.append(parent)
    return Selection(tuple(chosen.values()), tuple(chosen_mixes.values()), tuple(notes))


def _find(noun: str, text: str, items: Sequence[Item]) -> Item:
    for item in items:
        if item.id == text:
            return item
    named = [item for item in items if item.name == text]
    if named:
        return max(named, key=lambda item: item.created)
    listed = ", ".join(f"{item.id} ({item.name})" for item in items[:LISTED]) or "none"
    if len(items) > LISTED:
        listed += f", and {len(items) - LISTED} more"
    raise NotFound(f"The workspace has no {noun} {text!r}.", f"Give an id or a name. It has: {listed}.")


def choose_base(name: str, chosen: Sequence[Adapter]) -> str:
    """The base of a Space: a name that a Space can load.

    Args:
        name: "embedded", a known base or a Hub id; "" is the base of the adapters.

    Raises:
        SpecError: the name is that of a file of this machine, or an adapter belongs to another base.
    """
    needed: dict[str, str] = {}  # base -> the name of one of its adapters
    for adapter in chosen:
        if adapter.base:
            needed.setdefault(portable_name(adapter.base), adapter.name)
    if len(needed) > 1:
        raise SpecError(
            "The adapters belong to different bases: "
            + ", ".join(f"{adapter_name!r} to {base}" for base, adapter_name in needed.items())
            + ".",
            "Choose adapters of one base.",
        ).at("adapter")
    base = portable_name(name) if name else next(iter(needed), EMBEDDED)
    if not is_portable(base):
        raise SpecError(
            f"The base of a Space must be {EMBEDDED}, {', '.join(KNOWN_BASES)} or a Hub id, got {base!r}.",
            "Upload the model to the Hub, and give its id with --base.",
        ).at("base")
    for other, adapter_name in needed.items():
        if other != base and is_portable(other):
            raise SpecError(
                f"{adapter_name!r} was trained on {other}, and the base of the Space is {base}.",
                f"Give --base {other}, or leave this adapter out.",
            ).at("base")
    return base


def portable_name(base: str) -> str:
    """The name of a base on every machine, where it has one: a converted download has its known name."""
    for known in KNOWN_BASES.values():
        if Path(base).name.endswith(known.sha256[:DIGEST_DIGITS]):
            return known.name
    return base


def is_portable(base: str) -> bool:
    """Whether a name means the same base on another machine."""
    if base == EMBEDDED or base in KNOWN_BASES:
        return True
    return bool(HUB_ID.fullmatch(base)) and not Path(base).is_dir()
