"""The mixes that a user can choose from, by name, and the settings of a prompt that Mix and Compare share.

A choice's id is the mix itself, as text that `Mix.parse` reads. It is never shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import gradio as gr

from core.engine import Engine
from core.engine.mix_names import label_adapters, name_mix
from core.errors import NotFound, SpecError
from core.spec.mix import Mix, tilt_by_depth
from core.store.mixes import SavedMix

SUGGESTED, ADAPTERS, SAVED, MIXER = "Suggested", "All adapters", "Saved mixes", "The Mix tab"
ALONE = " (alone only)"  # an adapter with weights of its own, see `core.model.own_weights`
ABOUT_LIMIT = 400  # characters that say what a mix holds


def list_choices(engine: Engine, current: Mix | None = None) -> list[dict[str, str]]:
    """Lists the default mixes, every adapter that fits the base, the saved mixes and the mixer's, each once.

    No two of them have the same name.

    Args:
        current: what the mixer is set to.

    Returns:
        dicts with the id, the name, the kind (see `kind_of`), the group of the list that it belongs to, and
        what it holds in words.
    """
    adapters = engine.library.mixable_adapters()
    kinds, labels = {a.id: a.kind for a in adapters}, label_adapters(adapters)
    default = engine.library.default_mixes()
    tilted = [_name(tilt_by_depth(*m.weights), labels) for m in default if len(m.weights) == 2]
    single = [Mix(name=labels[a.id], weights={a.id: 1.0}) for a in reversed(adapters) if a.fits]
    saved = [m.mix for m in engine.library.mixes() if set(m.weights) <= set(kinds)]
    mixer = [replace(current, name=f"Mixer: {current.name}"[:120])] if current and current.weights else []
    groups = ((SUGGESTED, [*default, *tilted]), (ADAPTERS, single), (SAVED, saved), (MIXER, mixer))
    choices: dict[str, dict[str, str]] = {}
    names: set[str] = set()
    for group, mixes in groups:
        for mix in mixes:
            earlier = choices.get(str(mix))
            if earlier is None:
                name = _make_unique(mix.name or name_mix(mix, labels), names, group)
                choices[str(mix)] = {
                    "id": str(mix),
                    "name": name,
                    "kind": kind_of(mix, kinds),
                    "group": group,
                    "about": name_mix(mix, labels, ABOUT_LIMIT)
                    + (ALONE if any(a.alone for a in adapters if a.id in mix.weights) else ""),
                }
                names.add(name)
            elif group == SAVED and mix.name != earlier["name"]:
                earlier["name"] = f"{earlier['name']} ({mix.name})"
    return list(choices.values())


def _name(mix: Mix, labels: Mapping[str, str]) -> Mix:
    return replace(mix, name=name_mix(mix, labels))


def _make_unique(name: str, taken: set[str], group: str) -> str:
    """A name that is not taken: itself, or followed by what it names."""
    if name not in taken:
        return name
    noun = {SAVED: "saved mix", MIXER: "mixer"}.get(group, "adapter")
    number, unique = 2, f"{name} ({noun})"
    while unique in taken:
        unique, number = f"{name} ({noun} {number})", number + 1
    return unique


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
        SpecError: an id cannot be parsed as a mix. NotFound: an adapter of one was deleted.
    """
    names = {c["id"]: c["name"] for c in list_choices(engine, current)}
    labels = engine.library.labels()
    mixes = []
    for number, one in enumerate(ids, 1):
        mix = Mix.parse(one)
        if not set(mix.weights) <= set(labels):
            deleted = {t.id: f"{t.name} (deleted)" for t in engine.library.trash() if t.kind == "adapters"}
            whole = name_mix(mix, {**deleted, **labels})
            raise NotFound(
                f"Mix {number} uses an adapter that is not in the library any more: {whole}.",
                "Choose another one in its place, or restore the adapter from the trash in the Library.",
            )
        name = names.get(one) or names.get(str(mix)) or name_mix(mix, labels)
        mixes.append(replace(mix, name=name[:120]))
    return mixes


def check_adapter(engine: Engine, adapter_id: str) -> None:
    """Checks that an adapter can be compared.

    Raises:
        NotFound: it was deleted, or its run has not made it yet. SpecError: it belongs to another base.
    """
    found = next((a for a in engine.library.mixable_adapters() if a.id == adapter_id), None)
    if found is not None and found.fits:
        return
    if found is not None:
        raise SpecError(
            f"The adapter {found.name!r} cannot be compared. {found.reason}", "Choose its base first."
        )
    name = next((t.name for t in engine.library.trash() if t.id == adapter_id), "")
    if name:
        raise NotFound(
            f"The adapter {name!r} was deleted, so it cannot be compared.",
            "Restore it from the trash in the Library, or train it again.",
        )
    raise NotFound(
        "This adapter is not in the library: it was deleted, or its run has not saved it.",
        "Train it again, or compare another adapter.",
    )


def describe_saved_mix(engine: Engine, saved: SavedMix) -> str:
    """What a saved mix holds, by the present names of its adapters."""
    labels = {**{a: f"{n} (deleted)" for a, n in saved.names.items()}, **engine.library.labels()}
    return f"{saved.name}: {name_mix(saved.mix, labels, ABOUT_LIMIT)}"


def show_prompt(card: str) -> str:
    """JavaScript that scrolls a narrow window to the card with the prompt and its answers.

    Args:
        card: the element's id.
    """
    return (
        f"() => {{ if (innerWidth <= 640) document.getElementById('{card}')"
        "?.scrollIntoView({ block: 'start', behavior: 'instant' }); }"
    )


def system_fields() -> tuple[gr.Textbox, gr.Checkbox]:
    """The system prompt, and the switch of bases that can think; it is hidden until such a base is loaded."""
    with gr.Accordion("System prompt", open=False, elem_classes="quiet-fold"):
        system = gr.Textbox(
            label="System prompt",
            info="Stands before every conversation. A text that is continued has none.",
            lines=2,
            max_lines=8,
        )
        thinking = gr.Checkbox(
            False,
            label="Think first",
            info="The answer begins with a thought, which is folded away.",
            visible=False,
        )
    return system, thinking
