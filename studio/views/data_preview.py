"""Views of files that are not imported yet: how they are read, with what the user can change by one click."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.data.documents.document import Block
from core.data.formats.text_encodings import LABELS, Candidate
from studio import formatting
from studio.first_page import FirstPage
from studio.reading_choices import ROLE_NAMES, SAME, Choices, find_role, list_roles
from studio.tree import Node, button, details, facts, node, title
from studio.views.data import (
    KIND_NAMES,
    PREVIEW_ROWS,
    SPLITS,
    list_row_facts,
    render_cuts,
    render_notes,
    render_rows,
    render_skipped_files,
    shorten,
)

DOCUMENT_LIMIT = 200  # documents to choose from
SHOWN_ROWS = 6  # canonical rows of a preview


def render_problem(message: str, candidates: Sequence[Candidate] = (), encoding: str = "utf-8") -> Node:
    """Why the files cannot be read, and the encodings to choose from where that is the reason."""
    return node(
        "div", node("p", message, cls="problem", role="alert"), render_candidates(candidates, encoding)
    )


def describe_scope(preview: Any, files: int) -> str:
    """How much is previewed: files and rows."""
    rows = formatting.count(preview.total, _name_of_row(preview))
    about = "about " if preview.is_sample else ""
    return f"{formatting.count(files, 'file')}, {about}{rows}. Nothing is imported yet."


def render_preview(
    preview: Any,
    scope: str,
    choices: Choices,
    candidates: Sequence[Candidate] = (),
    name: str = "",
    head: Node | None = None,
) -> Node:
    """How files are read: problems and questions first, then their rows before and after.

    Args:
        preview: a `core.data.datasets.Preview`.
        scope: how much of what is previewed.
        candidates: encodings that the files may have, if they do not say.
        name: what is previewed, if it is not what was dropped.
        head: what stands below the title.
    """
    question = _render_question(preview, choices)
    return node(
        "div",
        title(f"Preview of {name}" if name else "Preview", scope),
        head,
        _render_preview_problem(preview, question is not None),
        render_candidates(candidates, choices.encoding),
        question,
        facts(
            [
                ("Read as", KIND_NAMES.get(preview.kind, preview.kind)),
                ("Layout", preview.layout),
                ("Columns read", _describe_roles(preview.roles)),
                *list_row_facts(preview),
            ]
        ),
        render_notes(preview.notes),
        render_skipped_files(preview.skipped),
        None if preview.is_sample else _render_shares(preview),
        render_cuts(preview.cuts),
        *_render_file_rows(preview),
        *_render_canonical(preview),
    )


def _name_of_row(preview: Any) -> str:
    return "text" if preview.kind == "domain" and set(preview.columns) == {"text"} else "row"


def _describe_roles(roles: dict[str, str]) -> str:
    """Each column with its role; nothing for documents, which have one."""
    if roles == {"text": "text"}:
        return ""
    return ", ".join(f"{column} ({role})" for role, column in roles.items())


# ---------------------------------------------------------------- questions


def render_candidates(candidates: Sequence[Candidate], present: str) -> Node | None:
    """Encodings to choose from, each with the same lines of the file."""
    if not candidates:
        return None
    cards = []
    for candidate in candidates:
        is_present = present == candidate.encoding
        lines = [node("span", line, cls="candidate-line") for line in candidate.preview]
        cards.append(
            node(
                "button",
                node("strong", candidate.label),
                *lines,
                cls="candidate picked" if is_present else "candidate",
                act={"do": "encoding", "encoding": candidate.encoding},
                aria_pressed="true" if is_present else "false",
            )
        )
    listed = node("div", *cards, cls="candidates")
    if present != "utf-8":
        chosen = f"Read as {LABELS.get(present, present)}, as you chose. Change it"
        return node("section", details(chosen, listed), cls="ask", aria_label="Encoding")
    text = "The file does not say how its letters are stored. Which of these reads right?"
    return node("section", node("p", text), listed, cls="ask", aria_label="Encoding")


def _render_question(preview: Any, choices: Choices) -> Node | None:
    """Asks whether the proposed roles are right, with the reason of the proposal."""
    question = str(getattr(preview, "question", "") or "")
    if not question or choices.answered:
        return None
    swap = any(r in preview.roles for r in SAME[0]) and any(r in preview.roles for r in SAME[1])
    return node(
        "section",
        node("p", question),
        node(
            "div",
            button("Yes", {"do": "confirm"}, "primary"),
            button("Swap them", {"do": "swap"}) if swap else None,
            button("Something else", {"do": "other"}),
            cls="row",
        ),
        cls="ask",
        aria_label="Roles of the columns",
    )


def _render_preview_problem(preview: Any, asks: bool) -> Node | None:
    """Why an import would be refused; nothing where the question says it."""
    if not preview.problem or asks:
        return None
    problem = preview.problem
    if getattr(preview, "question", ""):
        problem = "Choose the role of each column in the head of the table below."
    return node("p", problem, cls="problem", role="alert")


# ---------------------------------------------------------------- rows


def _render_file_rows(preview: Any) -> list[Node | None]:
    """The first rows of the files, under a role picker for each column."""
    columns = list(preview.columns)
    if preview.kind == "domain" and columns == ["text"]:
        return []  # documents have no columns to choose
    roles = list_roles(preview.kind, preview.roles)
    given = [c for c in preview.choices if c not in columns]
    heads = [_render_head(preview, c, roles) for c in columns]
    body = [
        node("tr", *[node("td", shorten(row.get(c)), cls=_cell_class(preview, c)) for c in columns])
        for row in preview.rows[:PREVIEW_ROWS]
    ]
    whole = node("table", node("thead", node("tr", *heads)), node("tbody", *body))
    extra = None
    if given:  # columns that the layout writes
        pickers = [node("label", node("span", c), _render_picker(preview, c, roles)) for c in given]
        extra = node("div", *pickers, cls="role-pickers")
    return [
        node("h3", "As it is in the file"),
        node("p", "Each column's role stands in its head; change it there.", cls="quiet"),
        extra,
        node("div", whole, cls="table roles", tabindex="0", role="region", aria_label="Rows of the file"),
    ]


def _cell_class(preview: Any, column: str) -> str:
    return "" if _is_used(preview, column) else "unused"


def _is_used(preview: Any, column: str) -> bool:
    return column in preview.roles.values() or (
        column not in preview.unread and column not in preview.choices
    )


def _render_head(preview: Any, column: str, roles: list[str]) -> Node:
    name = node("span", column, cls="column-name", title=column)
    if column in preview.choices:
        below = _render_picker(preview, column, roles)
    else:
        text = f"Read by the layout {preview.layout}" if _is_used(preview, column) else "Not used"
        below = node("span", text, cls="quiet")
    return node("th", name, below, scope="col", cls=_cell_class(preview, column))


def _render_picker(preview: Any, column: str, roles: list[str]) -> Node:
    present = find_role(preview.roles, column)
    options = [
        node("option", ROLE_NAMES.get(r, r), value=r, selected="selected" if r == present else None)
        for r in ["", *roles]
    ]
    return node(
        "select",
        *options,
        cls=f"role {present}".strip() if present else "role none",
        act={"do": "role", "column": column},
        aria_label=f"Role of the column {column}",
    )


def _render_canonical(preview: Any) -> list[Node]:
    """The first rows as they are learned, if they can be."""
    if not preview.canonical:
        return []
    rows = render_rows(preview.kind, "", preview.canonical[:SHOWN_ROWS])
    return [node("h3", "As it is learned"), rows]


# ---------------------------------------------------------------- documents


def _render_shares(preview: Any) -> Node | None:
    """The sizes of the splits as a bar: in tokens of the base, else as shares of the text."""
    if not preview.split_shares:
        return None
    counted = preview.split_tokens
    if counted is None:
        return _render_parts("Shares of the text", preview.split_shares, {})
    about = "about " if counted.is_estimate else ""
    total = max(1, sum(counted.tokens.values()))
    shares = {name: tokens / total for name, tokens in counted.tokens.items()}
    sizes = {name: f"{about}{formatting.format_count(n)}" for name, n in counted.tokens.items()}
    return _render_parts(f"Tokens of the base {formatting.format_base(counted.base)}", shares, sizes)


def _render_parts(label: str, shares: dict[str, float], sizes: dict[str, str]) -> Node:
    """A bar of the splits. Without sizes, the shares stand in their place."""
    parts = []
    for name in (n for n in SPLITS if shares.get(n)):
        share = formatting.format_percent(shares[name])
        parts.append(
            node(
                "div",
                node("span", SPLITS[name]),
                node("strong", sizes.get(name, share)),
                node("small", share) if name in sizes else None,
                cls=f"part {name}",
                vars={"share": f"{100 * shares[name]:.2f}%"},
            )
        )
    return node("div", node("h3", label), node("div", *parts, cls="parts", role="group", aria_label=label))


# ---------------------------------------------------------------- the first page


def render_first_page(page: FirstPage, names: Sequence[str]) -> Node:
    """The first page of a document beside the text that is read from it.

    Args:
        names: the documents to choose from.
    """
    picker = None
    if len(names) > 1:
        options = [
            node("option", n, value=n, selected="selected" if n == page.name else None)
            for n in names[:DOCUMENT_LIMIT]
        ]
        picker = node("select", *options, cls="role", act={"do": "page"}, aria_label="Document to show")
    heading = "Page 1 beside its text" if page.picture else "How it begins, as it is read"
    picture = None
    if page.picture:
        source = f"data:image/png;base64,{page.picture}"
        image = node("img", src=source, alt=f"Page 1 of {page.name}")
        picture = node("div", image, cls="page-picture")
    text = node("div", *[_render_block(b) for b in page.blocks], cls="page-text", tabindex="0", role="region",
                aria_label=f"Text of {page.name}")  # fmt: skip
    return node(
        "section",
        node("div", node("h3", heading), picker, cls="row spread-row"),
        node("p", page.problem, cls="note") if page.problem else None,
        node("div", picture, text if page.blocks else None, cls="page-sides" if picture else ""),
        cls="first-page",
    )


def _render_block(block: Block) -> Node:
    """A block of a document in the shape of its kind."""
    if block.kind == "heading":
        return node("h4", block.text, cls=f"level-{min(3, max(1, block.level))}")
    if block.kind == "table":
        lines = [
            node("tr", *[node("td", cell) for cell in line.split(" | ")]) for line in block.text.split("\n")
        ]
        return node("table", node("tbody", *lines))
    if block.kind == "code":
        return node("pre", block.text)
    return node("p", block.text, cls=block.kind)
