"""The Data tab: files become a dataset that one can look at down to its tokens.

Knows previews, datasets and what they look like. Knows nothing of readers or splits.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.data.columns import ROLE_SETS
from core.data.columns import ROLES as ROLES_OF
from core.data.readers import SUFFIXES
from core.engine import Engine
from core.errors import DataError, StudioError
from studio import events, fields, formatting
from studio.tree import Node, button, chip, empty, facts, node, table, title, view

ROLES = tuple(dict.fromkeys(r for roles in ROLES_OF.values() for r in roles))
ENCODINGS = [
    ("UTF-8", "utf-8"),
    ("Latin-1 (Western European)", "latin-1"),
    ("Windows-1252", "cp1252"),
    ("UTF-16", "utf-16"),
]
KINDS = [("Domain: plain text", "domain"), ("Task: labelled pairs", "task")]
NAMES = {"train": "Training", "val": "Validation", "test": "Test"}
PREVIEW_ROWS, CELL = 12, 240
WAITING = -1  # the index of the shown example while the base still loads
NOTHING = empty(
    "No data yet",
    "A domain is plain text (.txt, .md): its language and facts. A task is labelled pairs (.jsonl, .csv, …): questions and answers. "
    "The sample data brings one of each.",
    button("Use the sample data", {"do": "sample"}, "primary"),
)


@dataclass(frozen=True)
class DataTab:
    """The components of the Data tab."""

    files: gr.File
    reading: gr.Accordion
    kind: gr.Radio
    encoding: gr.Dropdown
    roles: dict[str, gr.Dropdown]
    name: gr.Textbox
    add: gr.Button
    picker: gr.Dropdown
    split: gr.Radio
    preview: gr.HTML
    shown: gr.HTML
    tokens: gr.HTML
    index: gr.State


def build() -> DataTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title("Add data", "Files stay on this machine."))
            files = gr.File(
                label="Files", file_count="multiple", file_types=list(SUFFIXES), height=150, elem_id="files"
            )
            with gr.Accordion("How the files are read", open=True, visible=False) as reading:
                kind = gr.Radio(
                    KINDS,
                    label="Kind",
                    value="domain",
                    info="Guessed from the files; correct it if the guess is wrong.",
                )
                with gr.Row():
                    roles = {
                        r: fields.picker(f"{r.capitalize()} column", visible=False, min_width=130)
                        for r in ROLES
                    }
                encoding = gr.Dropdown(ENCODINGS, value="utf-8", label="Encoding")
                name = gr.Textbox(label="Name of the dataset", max_length=120)
            add = gr.Button("Import the files", variant="primary", interactive=False)
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            with gr.Row():
                picker = fields.picker("Dataset", scale=3)
                split = gr.Radio(
                    [(v, k) for k, v in NAMES.items()], value="train", label="Split", scale=2, min_width=220
                )
            preview = view(None, elem_id="preview")
            shown = view(NOTHING, elem_id="dataset")
            tokens = view(elem_id="tokens")
    return DataTab(
        files, reading, kind, encoding, roles, name, add, picker, split, preview, shown, tokens, gr.State(0)
    )


def wire(tab: DataTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    roles = list(tab.roles.values())
    reading = [tab.preview, tab.add, *roles]
    dataset = [tab.shown, tab.tokens]
    events.bind(
        tab.files.change,
        engine,
        offered,
        [tab.files, tab.encoding],
        [tab.reading, tab.kind, tab.name, *dataset, *reading],
    )
    for control in (tab.kind, tab.encoding):
        events.bind(control.input, engine, reread, [tab.files, tab.kind, tab.encoding], reading)
    for role in roles:
        events.bind(
            role.input, engine, checked, [tab.files, tab.kind, tab.encoding, *roles], [tab.preview, tab.add]
        )
    form = [tab.files, tab.kind, tab.encoding, tab.name, *roles]
    events.refresh_after(
        events.bind(tab.add.click, engine, imported, form, [tab.files, tab.picker], show_progress="minimal")
    )
    tokens = [tab.tokens, tab.index]  # apart from the rest, because they wait for the model's thread
    events.bind_sequential(
        events.any_of((tab.picker.change, tab.split.change)),
        engine,
        opened,
        [tab.picker, tab.split],
        [tab.shown],
    )
    events.bind_sequential(tab.picker.change, engine, exemplified, [tab.picker], tokens)
    events.bind(tab.picker.input, engine, unveiled, None, dataset)
    library_changed.then(caught_up, [tab.picker, tab.index], tokens)
    events.bind(tab.tokens.act, engine, another, [tab.picker, tab.index], tokens)
    library_changed.add(refresh, [tab.picker], [tab.picker])


def refresh(engine: Engine, picked: str | None) -> Any:
    """The picker's choices, with the present one kept where it still exists."""
    sets = list(reversed(engine.datasets.list()))
    ids = [d.id for d in sets]
    return fields.update_choices(
        [(d.name, d.id) for d in sets], picked if picked in ids else (ids[0] if ids else None), picked
    )


def offered(engine: Engine, files: list[str] | None, encoding: str) -> tuple[Any, ...]:
    """Files were dropped: guesses what they are and shows them in the dataset's place. Files were taken away: the dataset is back."""
    dataset = (
        gr.update(visible=not files),
        gr.update(visible=not files),
    )  # what arrives for it meanwhile covers nothing
    if not files:
        return gr.update(visible=False), gr.skip(), "", *dataset, *_closed()
    kind, name = "domain", _stem(files[0])
    with contextlib.suppress(StudioError):  # the sentence is shown by the reading below
        kind = engine.datasets.preview(files, encoding=encoding).kind
    return gr.update(visible=True), kind, name, *dataset, *reread(engine, files, kind, encoding)


def reread(engine: Engine, files: list[str] | None, kind: str, encoding: str) -> tuple[Any, ...]:
    """Reads the dropped files again with another kind or encoding, and guesses the columns anew."""
    if not files:
        return _closed()
    try:
        seen = engine.datasets.preview(files, kind=kind, encoding=encoding)
    except DataError as e:
        return (
            _problem(events.user_message(e)),
            gr.update(interactive=False),
            *[gr.update(visible=False) for _ in ROLES],
        )
    wanted = _wanted(kind, seen.roles)
    slots = [
        gr.update(
            choices=[("(none)", ""), *[(c, c) for c in seen.columns]],
            value=seen.roles.get(r, ""),
            visible=r in wanted,
        )
        for r in ROLES
    ]
    return _preview(seen, files), gr.update(interactive=not seen.problem), *slots


def checked(
    engine: Engine, files: list[str] | None, kind: str, encoding: str, *columns: str
) -> tuple[Any, ...]:
    """A column was corrected: shows what the rows become."""
    try:
        seen = engine.datasets.preview(files or [], kind=kind, roles=_roles(columns), encoding=encoding)
    except DataError as e:
        return _problem(events.user_message(e)), gr.update(interactive=False)
    return _preview(seen, files or []), gr.update(interactive=not seen.problem)


def imported(
    engine: Engine, files: list[str] | None, kind: str, encoding: str, name: str, *columns: str
) -> tuple[Any, ...]:
    """Makes a dataset of the dropped files and opens it."""
    if not files:
        raise DataError("There are no files to import.", "Drop some on the left first.")
    made = engine.datasets.import_files(
        files, name or _stem(files[0]), kind=kind, roles=_roles(columns) or None, encoding=encoding
    )
    gr.Info(f"Imported {made.rows:,} rows.", title="Done")
    return None, gr.update(choices=[(d.name, d.id) for d in reversed(engine.datasets.list())], value=made.id)


def opened(engine: Engine, picked: str | None, split: str) -> Node:
    """Shows a dataset: facts, split sizes and rows."""
    if not picked:
        return NOTHING
    return _dataset(engine.datasets.get(picked), split, engine.datasets.rows(picked, split, limit=PREVIEW_ROWS))


def unveiled(engine: Engine) -> tuple[Any, Any]:
    """Someone chose a dataset: it is in view, below files that wait to be imported."""
    return gr.update(visible=True), gr.update(visible=True)


def exemplified(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """Shows the first training example as tokens."""
    return (_tokens(engine, picked, 0), WAITING if engine.bases.current().loading else 0) if picked else (None, 0)


def caught_up(engine: Engine, picked: str | None, index: int) -> tuple[Any, ...]:
    """The base has loaded since: shows the tokens that could not be shown before."""
    return exemplified(engine, picked) if index == WAITING else (gr.skip(), gr.skip())


def another(engine: Engine, picked: str | None, index: int) -> tuple[Any, ...]:
    """The next training example as tokens."""
    if not picked:
        return None, 0
    following = (index + 1) % max(1, engine.datasets.get(picked).splits.get("train", 1))
    return _tokens(engine, picked, following), following


def _stem(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0][:120] or "Data"


def _roles(columns: tuple[str, ...]) -> dict[str, str]:
    return {role: column for role, column in zip(ROLES, columns, strict=False) if column}


def _wanted(kind: str, roles: dict[str, str]) -> set[str]:
    """The roles worth showing: those of the layout that the guess found, or the usual ones of the kind."""
    fitting = [s for s in ROLE_SETS if s.kind == kind and set(s.required) <= set(roles)]
    if fitting:
        return set(fitting[0].required + fitting[0].optional)
    return {"text"} if kind == "domain" else {"question", "answer", "context", "prompt", "completion"}


def _closed() -> tuple[Any, ...]:
    return None, gr.update(interactive=False), *[gr.update(visible=False) for _ in ROLES]


def _problem(sentence: str) -> Node:
    return node("div", node("p", sentence, cls="problem", role="alert"))


def _cells(columns: list[str], rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[_cell(r.get(c)) for c in columns] for r in rows[:PREVIEW_ROWS]]


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else str(value)
    return text[:CELL] + " …" if len(text) > CELL else text


def _preview(seen: Any, files: list[str]) -> Node:
    what = f"{len(files)} file{'s' if len(files) != 1 else ''}, {seen.total:,} rows. Nothing is imported yet."
    notice = node("p", seen.problem, cls="problem", role="alert") if seen.problem else None
    columns = list(seen.columns)
    return node(
        "div",
        title("Preview", what),
        notice,
        table(columns, _cells(columns, seen.rows), "First rows of the files"),
    )


def _dataset(found: Any, split: str, rows: list[dict[str, Any]]) -> Node:
    total = max(1, sum(found.splits.values()))
    parts = [
        node(
            "div",
            node("span", NAMES.get(k, k)),
            node("strong", f"{n:,}"),
            cls=f"part {k}",
            vars={"share": f"{100 * n / total:.2f}%"},
        )
        for k, n in ((k, found.splits.get(k, 0)) for k in NAMES)
    ]
    about = facts(
        [("Rows", f"{found.rows:,}"), ("Files", ", ".join(f["name"] for f in found.files)[:200]), ("Split seed", found.seed),
         ("Types", ", ".join(f"{k} {n:,}" for k, n in found.types.items())), ("Fingerprint", found.sha256[:16])]
    )  # fmt: skip
    heading = node("div", node("h2", found.name), chip(found.kind, found.kind), cls="row")
    return node(
        "div",
        heading,
        node("div", *parts, cls="parts", aria_label="Split sizes", role="group"),
        about,
        _rows(found.kind, split, rows),
    )


def _rows(kind: str, split: str, rows: list[dict[str, Any]]) -> Node:
    caption = f"First rows of the {NAMES.get(split, split).lower()} split"
    if kind == "domain":
        return table(["Text"], [[_cell(r.get("text"))] for r in rows], caption)
    pairs = [
        [
            _cell("\n".join(m["content"] for m in r["messages"][:-1])),
            _cell(r["messages"][-1]["content"]),
            r.get("type", ""),
        ]
        for r in rows
    ]
    typed = any(p[2] for p in pairs)
    return table(
        ["Asked", "Answer (trained)", "Type"][: 3 if typed else 2],
        [p[: 3 if typed else 2] for p in pairs],
        caption,
    )


def _tokens(engine: Engine, picked: str, index: int) -> Node:
    sub = "What the model sees of one training example. Only the marked tokens are learned; the rest is context."
    head = node(
        "div",
        title("One example as tokens", sub),
        button("Another example", {"do": "another"}),
        cls="row spread",
    )
    if engine.bases.current().loading:
        return node(
            "div",
            head,
            node("p", "The base model is still loading; its tokens appear here in a moment.", cls="note"),
        )
    try:
        pieces = engine.datasets.example_tokens(picked, index)
    except StudioError as e:
        return node("div", head, node("p", events.user_message(e), cls="note"))
    shown = [
        node(
            "span",
            p.text.replace("\n", "⏎\n"),
            cls="tok trained" if p.trained else "tok",
            title=f"Token {p.token}",
        )
        for p in pieces
    ]
    learned = sum(p.trained for p in pieces)
    count = node(
        "p",
        f"{len(pieces)} tokens, {learned} learned ({formatting.format_percent(learned / max(1, len(pieces)))})",
        cls="quiet",
    )
    return node(
        "div",
        head,
        node("div", *shown, cls="tokens", role="group", aria_label="Tokens of a training example"),
        count,
    )
