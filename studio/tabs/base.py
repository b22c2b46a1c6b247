"""The Base tab: the resident base model, the bases on this machine, downloads and conversions.

`core/engine/bases.py` loads, downloads and converts models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import BaseModelError
from core.spec.training import QUANTIZATIONS
from core.store.known_bases import KNOWN_BASES
from studio import events, fields, formatting
from studio.components import field_errors
from studio.tree import Node, button, chip, details, facts, node, progress_bar, skeleton, title, view

QUANTIZATION_LABELS = {"auto": "Automatic", "nf4": "4-bit (nf4)", "int8": "8-bit (int8)", "none": "None"}
POLL_SECONDS = 0.7  # between two updates of a download
PLACES = {
    "embedded": "included with the studio",
    "cache": "in the Hub cache",
    "folder": "in a folder",
    "converted": "in this workspace",
    "ollama": "in Ollama, converted at its first use",
    "lmstudio": "in LM Studio, converted at its first use",
}
ENDINGS = {  # of a base that was made from a file
    "used": "{name} is ready and is being loaded.",
    "waiting": "{name} is ready ({size}). Press “Use this base”.",
    "ready": "{name} is ready ({size}). Press “Use this base”.",
}


@dataclass(frozen=True)
class BaseTab:
    """The components of the Base tab; `confirmation` holds `warnings`, `confirm` and `cancel`."""

    choice: gr.Dropdown
    quantization: gr.Radio
    use: gr.Button
    download: gr.Button
    small: gr.HTML
    confirmation: gr.Column
    warnings: gr.HTML
    confirm: gr.Button
    cancel: gr.Button
    errors: field_errors.FieldErrors
    progress: gr.HTML
    resident: gr.HTML
    shelf: gr.HTML
    timer: gr.Timer


def build() -> BaseTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=5, min_width=300, elem_classes="card"):
            view(
                title(
                    "Choose a base model",
                    "An adapter fits only the base it was trained on. The base's own weights never change.",
                )
            )
            choice = fields.picker(
                "Base",
                info="A model on this machine, a folder, a GGUF file, or a Hub id such as "
                "Qwen/Qwen2.5-0.5B-Instruct.",
                elem_id="base-choice",
            )
            quantization = gr.Radio(
                [(QUANTIZATION_LABELS[q], q) for q in QUANTIZATIONS],
                value="auto",
                label="Quantization",
                info="Automatic means 4-bit on a GPU and none on a CPU.",
            )
            errors = field_errors.field_errors({"base": choice})
            with gr.Row():
                use = gr.Button("Use this base", variant="primary", min_width=140)
                download = gr.Button("Download from the Hub", min_width=140)
            small = view(elem_id="base-small")
            with gr.Column(visible=False, elem_id="base-confirmation") as confirmation:
                warnings = view()
                with gr.Row():
                    confirm = gr.Button("Yes, change the base", variant="stop", min_width=140)
                    cancel = gr.Button("Keep this one", min_width=120)
            progress = view(elem_id="base-progress")
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            resident = view(skeleton(4, "Loading the base"), elem_id="base-resident")
            shelf = view(skeleton(3, "Looking for bases"), elem_id="base-shelf")
    return BaseTab(
        choice,
        quantization,
        use,
        download,
        small,
        confirmation,
        warnings,
        confirm,
        cancel,
        errors,
        progress,
        resident,
        shelf,
        gr.Timer(POLL_SECONDS, active=False),
    )


def wire(tab: BaseTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    lists = [tab.choice, tab.resident, tab.shelf, tab.progress, tab.timer, tab.small]
    confirmation = [tab.confirmation, tab.warnings]
    library_changed.add(refresh, None, lists)
    events.bind(tab.shelf.act, engine, pick_base, None, [tab.choice])
    events.refresh_after(
        events.bind(
            tab.use.click,
            engine,
            use_base,
            [tab.choice, tab.quantization],
            [*confirmation, tab.progress, tab.timer],
            errors=tab.errors,
        )
    )
    field_errors.wire(tab.errors, engine)
    events.refresh_after(
        events.bind(tab.confirm.click, engine, change_base, [tab.choice, tab.quantization], confirmation)
    )
    events.bind(tab.cancel.click, engine, cancel_change, None, confirmation)
    events.refresh_after(
        events.bind(
            tab.download.click,
            engine,
            start_download,
            [tab.choice],
            [tab.progress, tab.timer],
            errors=tab.errors,
        )
    )
    events.refresh_after(events.bind(tab.resident.act, engine, accept_template, None, [tab.resident]))
    events.bind(tab.small.act, engine, get_offer, None, [tab.progress, tab.timer])
    events.bind(tab.timer.tick, engine, poll_download, None, lists)
    events.bind(tab.progress.act, engine, stop_download)


def refresh(engine: Engine) -> tuple[Any, ...]:
    """Updates the list of bases, the facts about the resident base, and the progress of a download."""
    base, offers, download = engine.bases.current(), engine.bases.list(), engine.bases.download_state()
    choices = [(o.label or formatting.format_base(o.name), o.name) for o in offers if not o.why]
    return (
        gr.update(choices=choices),
        render_facts(base),
        render_shelf(offers, base.name),
        render_progress(download),
        gr.Timer(active=download is not None and not download.over),
        render_offers(engine),
    )


def pick_base(engine: Engine, event: gr.EventData) -> str:
    """Puts the pressed base of the list into the form."""
    return str((event._data or {}).get("pick", ""))


def use_base(engine: Engine, choice: str | None, quantization: str) -> tuple[Any, ...]:
    """Changes the base, or asks for confirmation first if adapters would be unloaded.

    A file is converted first, in the background.
    """
    with _errors_at_base():
        if engine.bases.needs_preparation(choice or ""):
            engine.bases.download(choice or "", use=True, quantization=quantization)
            progress = render_progress(engine.bases.download_state())
            return gr.update(visible=False), None, progress, gr.Timer(active=True)
        warnings = engine.bases.switch(choice or "", quantization)
    if not warnings:
        return gr.update(visible=False), None, gr.skip(), gr.skip()
    problem = node(
        "div", node("strong", "Changing the base:"), *[node("p", w) for w in warnings], cls="problem"
    )
    return gr.update(visible=True), problem, gr.skip(), gr.skip()


@contextmanager
def _errors_at_base() -> Iterator[None]:
    """Errors about the chosen base stand at its field."""
    try:
        yield
    except BaseModelError as e:
        e.at("base")
        raise


def change_base(engine: Engine, choice: str | None, quantization: str) -> tuple[Any, Any]:
    """Changes the base after the confirmation."""
    engine.bases.switch(choice or "", quantization, confirmed=True)
    return gr.update(visible=False), None


def cancel_change(engine: Engine) -> tuple[Any, Any]:
    """Hides the confirmation."""
    return gr.update(visible=False), None


def accept_template(engine: Engine, event: gr.EventData) -> Node:
    """Uses the own chat template of the resident base, which is loaded again."""
    engine.bases.accept_template(str((event._data or {}).get("template", "")))
    return render_facts(engine.bases.current())


def start_download(engine: Engine, choice: str | None) -> tuple[Any, Any]:
    """Starts a download and the timer that follows it."""
    with _errors_at_base():
        engine.bases.download(choice or "")
    return render_progress(engine.bases.download_state()), gr.Timer(active=True)


def get_offer(engine: Engine, event: gr.EventData) -> tuple[Any, Any]:
    """Downloads a known small base, and uses it once it is ready, if that unloads nothing."""
    name = str((event._data or {}).get("get", ""))
    if name not in KNOWN_BASES:
        return gr.skip(), gr.skip()
    engine.bases.download(name, use=True)
    return render_progress(engine.bases.download_state()), gr.Timer(active=True)


def poll_download(engine: Engine) -> tuple[Any, ...]:
    """Updates the progress of a download; the lists only once it has ended."""
    download = engine.bases.download_state()
    if download is not None and not download.over:
        return gr.skip(), gr.skip(), gr.skip(), render_progress(download), gr.skip(), gr.skip()
    return refresh(engine)


def stop_download(engine: Engine, event: gr.EventData) -> None:
    """Stops the download.

    The timer shows the result: an update from here could arrive after the timer's last one.
    """
    if (event._data or {}).get("stop"):
        engine.bases.stop_download()


def render_progress(download: Any) -> Node:
    """The progress of a download, or how it ended."""
    if download is None:
        return node("div")
    if download.error:
        return node("p", download.error, cls="problem", role="alert")
    if download.over:
        size, name = formatting.format_bytes(download.total), formatting.format_base(download.name)
        text = f"{download.name} is downloaded ({size}). Press “Use this base”."
        if download.base:
            text = ENDINGS[download.text].format(name=name, size=size)
        return node(
            "div", node("p", text, role="status"), chip("ready" if download.base else "downloaded", "good")
        )
    share = download.done / download.total if download.total else 0.0
    if download.text:
        return _render_work(download, share)
    text = f"{download.name}: contacting the Hub"
    if download.total:
        done, total = formatting.format_bytes(download.done), formatting.format_bytes(download.total)
        text = f"{download.name}: {done} of {total} ({share:.0%})"
    bar = progress_bar(share, f"Download of {download.name}")
    return node("div", node("p", text, role="status"), bar, button("Stop the download", {"stop": True}))


def _render_work(download: Any, share: float) -> Node:
    """The progress of a download from a package index, or of a conversion."""
    text = f"{download.text} ({share:.0%})" if download.total > 1 else download.text
    bar = progress_bar(share, f"Preparation of {download.name}")
    return node("div", node("p", text, role="status"), bar, button("Stop", {"stop": True}))


def render_offers(engine: Engine) -> Node:
    """What can be downloaded without the Hub, each with a button; nothing once it is in this workspace."""
    known = [base for base in KNOWN_BASES.values() if engine.bases.needs_preparation(base.name)]
    rows = [
        node("div", node("p", node("strong", base.title), f": {base.about}"),
             button(f"Get {base.title}", {"get": base.name}))
        for base in known
    ]  # fmt: skip
    return node("div", *rows)


def render_facts(base: Any) -> Node:
    """The facts about the resident base."""
    head = node(
        "div",
        node("h2", formatting.format_base(base.name)),
        chip("loading" if base.loading else "resident", "warn" if base.loading else "good"),
        cls="row",
    )
    problems = [base.error] if base.error else []
    if base.failed:
        problems.insert(0, f"Could not load the other base, so this one stays: {base.failed}")
    alerts = [node("p", text, cls="problem", role="alert") for text in problems]
    note = node("p", base.note, cls="quiet") if base.note else None
    if base.loading:
        doing = node("p", base.progress, role="status") if base.progress else None
        return node("div", head, *alerts, doing, skeleton(4, "Loading the base"))
    shown = [
        ("Parameters", formatting.format_count(base.parameters) if base.parameters else ""),
        ("Context length", f"{base.context:,} tokens" if base.context else ""),
        ("Memory", formatting.format_bytes(base.memory_bytes) if base.memory_bytes else ""),
        ("Quantization", QUANTIZATION_LABELS.get(base.quantization, "")),
        ("Answers from", base.answers),
    ]
    template = "the model's own" if base.chat_template else "the studio's plain one"
    folded = [
        ("Family", base.family),
        ("Target modules", ", ".join(base.targets)),
        ("Chat template", template if base.parameters else ""),
        ("Fingerprint", base.fingerprint[:16]),
    ]
    fold = details("Details", facts(folded)) if base.parameters else None
    return node("div", head, *alerts, note, facts(shown), _render_template(base), fold)


def _render_template(base: Any) -> Node | None:
    """How the own chat template of a base differs from that of its family, and the button that accepts it."""
    template = base.template
    if template.is_broken:
        return node("p", f"{template.text} The studio's plain template is used.", cls="problem")
    if not template.differs:
        return None
    lines = node("pre", "\n".join(template.diff), cls="diff")
    if base.chat_template:
        return details("Chat template: differs from that of its family, and is accepted", lines)
    return node(
        "div",
        node("h3", "Chat template"),
        node(
            "p",
            f"{template.text} Until you accept it, the studio's plain template is used. A template decides "
            "what stands around every prompt; adapters trained with one answer worse with another.",
        ),
        lines,
        button("Use the base's own template", {"template": template.digest}, "primary"),
        cls="aside",
    )


def render_shelf(offers: list[Any], resident: str) -> Node:
    """The bases on this machine, each that cannot be used with the reason."""
    rows = []
    for o in offers:
        size = formatting.format_bytes(o.bytes) if o.bytes else ""
        mark = chip("resident", "good") if o.name == resident else None
        body = [
            node("span", node("strong", o.label or formatting.format_base(o.name)), mark, cls="row"),
            node("span", " · ".join(filter(None, [o.kind, size, PLACES[o.place]])), cls="quiet"),
        ]
        if o.why:
            rows.append(node("div", *body, node("span", o.why, cls="quiet"), cls="shelf-item"))
        else:
            rows.append(node("button", *body, cls="shelf-item", act={"pick": o.name}))
    return node("div", node("h3", "On this machine"), node("div", *rows, cls="shelf"))
