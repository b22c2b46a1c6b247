"""The mixes that a user can choose from. A choice's id is the mix itself, as text that `Mix.parse` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.engine import Engine
from core.spec.mix import Mix, tilt_by_depth


def list_choices(engine: Engine, current: Mix | None = None) -> list[dict[str, str]]:
    """Lists the default mixes, the saved ones and the mixer's, each once.

    Args:
        current: what the mixer is set to.

    Returns:
        dicts with the id, the name and the kind (see `kind_of`).
    """
    kinds = {a.id: a.kind for a in engine.library.mixable_adapters()}
    saved = [m.mix for m in engine.library.mixes() if set(m.weights) <= set(kinds)]
    mixer = [replace(current, name=f"Mixer: {current.name}"[:120])] if current and current.weights else []
    default = engine.library.default_mixes()
    tilted = [tilt_by_depth(*m.weights) for m in default if len(m.weights) == 2]
    choices: dict[str, dict[str, str]] = {}
    for mix in [*default, *tilted, *saved, *mixer]:
        choice = {"id": str(mix), "name": mix.name or str(mix), "kind": kind_of(mix, kinds)}
        choices.setdefault(str(mix), choice)
    return list(choices.values())


def kind_of(mix: Mix, kinds: Mapping[str, str]) -> str:
    """What colours a mix: "base", the kind of its only adapter, or "mix".

    Args:
        kinds: the kind of each adapter, by its id.
    """
    if not mix.weights:
        return "base"
    return kinds.get(next(iter(mix.weights)), "mix") if len(mix.weights) == 1 else "mix"


def parse_mixes(engine: Engine, ids: Sequence[str], current: Mix | None = None) -> list[Mix]:
    """Parses mixes from the ids of `list_choices`, each with its name.

    Raises:
        SpecError: an id cannot be parsed as a mix.
    """
    names = {c["id"]: c["name"] for c in list_choices(engine, current)}
    return [Mix.parse(i, name=names.get(i, i)[:120]) for i in ids]
